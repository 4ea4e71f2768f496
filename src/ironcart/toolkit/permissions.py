"""Who may do what at the broker: from the declared topology to the users of a nats-server.

A service tells its own facts, reads and settles what its own durable consumers give it, and hears
its own inbox. It makes, changes and deletes nothing there. It may not even make its consumers, nor
get messages directly: either lets it choose where the broker delivers a bare message, and so write
to subjects that it may not publish to.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ironcart.toolkit.topology import DEAD_LETTER_STREAM, Durable, Stream

PROVISION = "provision"
OPERATOR = "operator"
# Where clients that choose no inbox of their own hear their answers.
INBOX_DEFAULT = "_INBOX"


@dataclass(frozen=True, slots=True)
class Permissions:
    """The subjects that a user may publish to and subscribe to; every other one is refused."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def inbox_of(user: str) -> str:
    """The beginning of every subject over which a user hears answers."""
    return f"{INBOX_DEFAULT}_{user}"


def of_service(
    name: str, subjects: Iterable[str], durables: Sequence[Durable], streams: Iterable[Stream]
) -> Permissions:
    """What a service needs that emits to `subjects` and consumes by `durables`."""
    read = {each.stream for each in durables}
    told = {each.name for each in streams if each.owner == name}
    letters: tuple[str, ...] = (f"dlq.{name}.*", "deadletters.*")
    if DEAD_LETTER_STREAM.name in read:
        letters = ()  # Who reads what was set aside sets nothing aside: it would hear itself.
    allowed = [*subjects, *letters]
    for stream in sorted(read | told):
        # Recovery reads a stream as it is kept, to find what its database has lost.
        allowed += [f"$JS.API.STREAM.INFO.{stream}", f"$JS.API.STREAM.MSG.GET.{stream}"]
    for durable in durables:
        place = f"{durable.stream}.{durable.name}"
        allowed += [f"$JS.API.CONSUMER.{what}.{place}" for what in ("INFO", "MSG.NEXT", "RESET")]
        # In the older form, of nine words, and in the newer, which names domain and account and has
        # eleven or more. The length tells them apart: as nine words, `$JS.ACK.*.*.ORDERS.payments`
        # and so on would be the older form of whatever consumer stands in place of the stars.
        allowed += [f"$JS.ACK.{place}.*.*.*.*.*", f"$JS.ACK.*.*.{place}.*.*.*.*.>"]
    return Permissions(tuple(allowed), (f"{inbox_of(name)}.>",))


def of_provision(streams: Iterable[Stream], durables: Iterable[Durable]) -> Permissions:
    """What `ironcart provision` needs: to make and change what is declared, and nothing else."""
    allowed = [
        f"$JS.API.STREAM.{what}.{stream.name}"
        for stream in streams
        for what in ("INFO", "CREATE", "UPDATE")
    ]
    allowed += [
        f"$JS.API.CONSUMER.{what}.{durable.stream}.{durable.name}"
        for durable in durables
        for what in ("INFO", "CREATE")
    ]
    return Permissions(tuple(allowed), (f"{inbox_of(PROVISION)}.>",))


def of_operator(streams: Iterable[Stream]) -> Permissions:
    """What a person needs who repairs: every event, all of JetStream, but nobody else's inbox."""
    subjects = [subject for stream in streams for subject in stream.subjects]
    return Permissions(
        (*subjects, "$JS.API.>", "$JS.ACK.>"), (f"{inbox_of(OPERATOR)}.>", f"{INBOX_DEFAULT}.>")
    )


def server_users(users: Mapping[str, Permissions], password: Callable[[str], str]) -> str:
    """Write the users as a nats-server's configuration has them.

    `password` gives each user's, as it is to be written: in quotes, or as `$VARIABLE`.
    """
    lines = ["authorization {", "  users = ["]
    for name, allowed in users.items():
        lines += [f"    {{ user: {name}, password: {password(name)}, permissions: {{"]
        lines += _block("publish", allowed.publish) + _block("subscribe", allowed.subscribe)
        lines += ["    } }"]
    return "\n".join([*lines, "  ]", "}", ""])


def _block(kind: str, subjects: Sequence[str]) -> list[str]:
    listed = [f'        "{subject}"' for subject in subjects]
    return [f"      {kind}: {{ allow: [", *listed, "      ] }"]
