"""The card of a service: what it is called, what it is told, and how it is put together."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from ironcart.toolkit.http import Endpoint
from ironcart.toolkit.loop import Chassis, RawSubscription, Subscription
from ironcart.toolkit.recovery import Memory
from ironcart.toolkit.topology import Durable

LOOPBACK = ("127.0.0.1", "::1", "localhost")

Port = Annotated[int, Meta(ge=1, le=65535)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service is told by its environment."""

    nats_url: str
    database_url: str
    nats_monitor_url: str = ""
    host: str = "0.0.0.0"  # noqa: S104 - a container listens to its pod
    port: Port = 8080
    auth: Annotated[str, Meta(pattern="^(on|off)$")] = "on"
    log_level: Annotated[str, Meta(pattern="(?i)^(debug|info|warning|error)$")] = "info"
    drain_timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    allow_unsafe_broker: bool = False

    def __post_init__(self) -> None:
        if self.auth != "off":
            raise ValueError(
                "this version has no API keys yet: set IRONCART_AUTH=off and listen on a loopback"
                " address"
            )
        if self.host not in LOOPBACK:
            raise ValueError(
                "IRONCART_AUTH=off is for a loopback address: set IRONCART_HOST=127.0.0.1"
            )


class Loop(Protocol):
    """Something that runs beside the consumers, and finishes what it has begun after `stop`."""

    async def run(self) -> None:
        """Run until stopped."""

    def stop(self) -> None:
        """Begin nothing more."""


@dataclass(slots=True)
class Wiring:
    """What a service is made of, put together by its `app` module.

    `background` runs until everything else has drained, then is cancelled.
    """

    endpoints: Sequence[Endpoint] = ()
    subscriptions: Sequence[Subscription | RawSubscription] = ()
    loops: Sequence[Loop] = ()
    background: Sequence[Callable[[], Awaitable[None]]] = ()
    accepts_without_broker: bool = False
    close: Sequence[Callable[[], Awaitable[None]]] = ()


@dataclass(frozen=True, slots=True)
class Service:
    """The card of a service, as the command line knows it.

    `subjects` maps the types that it emits to where they go; `memory` says how its tables follow
    from what it has published.
    """

    name: str
    subjects: Mapping[str, str]
    durables: Sequence[Durable]
    settings: type[msgspec.Struct]
    build: Callable[[Chassis, Any, asyncio.Event], Wiring]
    memory: Memory | None = None
