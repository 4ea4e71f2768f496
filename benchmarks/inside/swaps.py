"""What replaces a part of the system to learn its price; each gets the part and returns another."""

import base64
import dataclasses
import functools
from typing import Any


def no_inbox(_: Any) -> Any:
    """Every message counts as new, and nothing is noted."""

    async def admit(_connection: Any, _stream: str, arrivals: Any) -> set[Any]:
        return {key for key, _ in arrivals}

    return admit


def no_fsync(settings: Any) -> Any:
    """Postgres says that it is on the disk when it is in memory."""
    return {**settings, "fsync": "off"}


def sync_later(config: Any) -> Any:
    """The broker says so, too; nats-server's own default."""
    return config.replace("sync_interval: always", "sync_interval: 2m")


def no_consumers(service: Any) -> Any:
    """A service that is there and is given nothing to do."""
    build = service.build

    @functools.wraps(build)
    def idle(*given: Any) -> Any:
        wiring = build(*given)
        wiring.subscriptions = []
        return wiring

    return dataclasses.replace(service, build=idle)


def in_the_clear(vault: Any) -> Any:
    """A vault that hides nothing: the same form, without keys and ciphers."""
    import msgspec

    from ironcart.toolkit.vault import Contact, Sealed

    async def seal(_: Any, contacts: Any) -> list[Sealed]:
        clear = [msgspec.json.encode(contact) for _, contact in contacts]
        return [Sealed(base64.b64encode(each).decode(), b"") for each in clear]

    async def lacking(_: Any, __: Any) -> set[str]:
        return set()

    async def decrypt(_: Any, contacts: Any) -> list[Any]:
        return [msgspec.json.decode(base64.b64decode(it), type=Contact) for _, it in contacts]

    instead = {"seal": seal, "lacking": lacking, "decrypt": decrypt}
    if gone := instead.keys() - vars(vault).keys():
        raise AttributeError(f"the vault has no {', '.join(gone)}: this would measure nothing")
    return type("Clear", (vault,), instead)
