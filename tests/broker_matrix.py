"""Every user of the broker against everything that can be asked of it, over the bare protocol.

Who may do what is said here once more, in rules of its own: it is not read from what is tested.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ironcart.cli import services
from ironcart.embedded.nats_server import ROUTE, Access, NatsServer
from ironcart.embedded.ports import free_port
from ironcart.events import OWNERS, STREAMS
from ironcart.toolkit.broker import Broker, ensure
from ironcart.toolkit.permissions import Permissions

NAMES = services.NAMES
DURABLES = [durable for card in services.every().values() for durable in card.durables]
READS = {name: {each.stream for each in DURABLES if each.name == name} for name in NAMES}
STREAM_OF = {owner: stream for owner, (stream, _) in OWNERS.items()}
# Audit only listens: what was set aside, too.
SETS_ASIDE = set(NAMES) - {"audit"}
STREAM_BYTES_MAX = 1 << 20
# Not JSON, and not empty: JetStream answers it with a "no", whatever it was asked.
JUNK = b"{"
# Who may do what nobody but a person should do is trusted with all of JetStream.
OPERATOR = frozenset({"operator"})
NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Operation:
    """One thing to be tried: `verb` is PUB or SUB; `is_answered` is whether JetStream replies."""

    verb: str
    subject: str
    allowed: frozenset[str]
    is_answered: bool = False

    def __str__(self) -> str:
        return f"{self.verb} {self.subject}"


def operations() -> list[Operation]:
    """Everything that is tried, by every user."""
    return [*_events(), *_streams(), *_consumers(), *_inboxes(), *_elsewhere()]


def _events() -> Iterator[Operation]:
    for owner, (_, kinds) in OWNERS.items():
        for subject in kinds.values():
            yield Operation("PUB", subject, OPERATOR | {owner}, is_answered=True)
            yield Operation("PUB", f"{subject}.more", NOBODY)
            yield Operation("SUB", subject, NOBODY)
    for name in NAMES:
        own = OPERATOR | ({name} & SETS_ASIDE)
        yield Operation("PUB", f"dlq.{name}.unknown", own, is_answered=True)
        yield Operation("PUB", f"dlq.{name}.unknown.more", OPERATOR)
    for action in ("edited", "replayed", "discarded"):
        yield Operation("PUB", f"deadletters.{action}", OPERATOR | SETS_ASIDE, is_answered=True)


def _streams() -> Iterator[Operation]:
    every = "$JS.API.STREAM"
    for stream in (each.name for each in STREAMS):
        readers = {name for name in NAMES if stream in READS[name] | {STREAM_OF.get(name)}}
        for what in ("INFO", "MSG.GET"):
            also = {"provision"} if what == "INFO" else set()
            allowed = OPERATOR | readers | also
            yield Operation("PUB", f"{every}.{what}.{stream}", allowed, is_answered=True)
        for what in ("CREATE", "UPDATE"):
            allowed = OPERATOR | {"provision"}
            yield Operation("PUB", f"{every}.{what}.{stream}", allowed, is_answered=True)
        for what in ("DELETE", "PURGE", "MSG.DELETE", "SNAPSHOT", "RESTORE", "PEER.REMOVE"):
            yield Operation("PUB", f"{every}.{what}.{stream}", OPERATOR)
        yield Operation("PUB", f"{every}.LEADER.STEPDOWN.{stream}", OPERATOR)
        yield Operation("PUB", f"$JS.API.DIRECT.GET.{stream}", OPERATOR)
        yield Operation("PUB", f"$JS.API.DIRECT.GET.{stream}.orders.created", OPERATOR)
        for what in ("LIST", "NAMES"):
            yield Operation("PUB", f"$JS.API.CONSUMER.{what}.{stream}", OPERATOR)
    for what in ("INFO", "CREATE", "DELETE"):
        yield Operation("PUB", f"{every}.{what}.ELSEWHERE", OPERATOR)
    for what in ("STREAM.LIST", "STREAM.NAMES", "INFO"):
        yield Operation("PUB", f"$JS.API.{what}", OPERATOR)


def _consumers() -> Iterator[Operation]:
    declared = {(durable.stream, durable.name) for durable in DURABLES}
    for stream in (each.name for each in STREAMS):
        for name in NAMES:
            is_there = (stream, name) in declared
            own = OPERATOR | ({name} if is_there else set())
            provision = {"provision"} if is_there else set()
            place, api = f"{stream}.{name}", "$JS.API.CONSUMER"
            for what in ("MSG.NEXT", "RESET"):
                yield Operation("PUB", f"{api}.{what}.{place}", own, is_answered=is_there)
            yield Operation("PUB", f"{api}.INFO.{place}", own | provision, is_answered=is_there)
            making = OPERATOR | provision
            yield Operation("PUB", f"{api}.CREATE.{place}", making, is_answered=is_there)
            for what in ("DELETE", "PAUSE", "UNPIN", "LEADER.STEPDOWN", "DURABLE.CREATE"):
                yield Operation("PUB", f"{api}.{what}.{place}", OPERATOR)
            yield Operation("PUB", f"{api}.CREATE.{place}.orders.created", OPERATOR)
            for form in (f"$JS.ACK.{place}.1.1.1.1.1", f"$JS.ACK._.hash.{place}.1.1.1.1.1"):
                yield Operation("PUB", form, own)
            yield Operation("PUB", f"$JS.ACK._.hash.{place}.1.1.1.1.1.random", own)
            # Read from the left it is another's place, and there the broker takes it to belong.
            yield Operation("PUB", f"$JS.ACK.ELSEWHERE.victim.{place}.1.1.1", OPERATOR)
        yield Operation("PUB", f"$JS.API.CONSUMER.CREATE.{stream}", OPERATOR)


def _inboxes() -> Iterator[Operation]:
    for name in (*NAMES, "provision", "operator"):
        for rest in (">", "a.b", "*.b"):
            yield Operation("SUB", f"_INBOX_{name}.{rest}", frozenset({name}))
        yield Operation("PUB", f"_INBOX_{name}.a", NOBODY)
    yield Operation("SUB", "_INBOX.>", OPERATOR)


def _elsewhere() -> Iterator[Operation]:
    for subject in (">", "*.>", "$JS.>", "$JS.API.>", "$JS.EVENT.ADVISORY.>", "$SYS.>", "dlq.>"):
        yield Operation("SUB", subject, NOBODY)
    for subject in (
        *("$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.ACCOUNT.x.CONNECT"),
        *("shop.elsewhere", "$KV.bucket.key", "$O.bucket.C.x", "_INBOX.a"),
    ):
        yield Operation("PUB", subject, NOBODY)


class Caller:
    """One user, speaking the protocol itself: what is refused comes before the next PONG."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.answered: set[str] = set()

    async def refusal(self, command: str, body: bytes | None = None) -> str:
        """Send one command; returns what the broker has against it."""
        lines = command.encode() + b"\r\n" + (b"" if body is None else body + b"\r\n")
        self._writer.write(lines + b"PING\r\n")
        said = ""
        while (line := await self._line()) != "PONG":
            said += line if line.startswith("-ERR") else ""
        return said

    async def until_answered(self, inboxes: set[str]) -> None:
        """Read on until something came to each of these subjects."""
        while inboxes - self.answered:
            await self._line()

    async def _line(self) -> str:
        line = (await self._reader.readline()).decode().rstrip()
        assert line, "the broker hung up"
        if line.startswith(("MSG ", "HMSG ")):
            words = line.split()
            self.answered.add(words[1])
            await self._reader.readexactly(int(words[-1]) + 2)
        return line


@asynccontextmanager
async def caller(server: NatsServer, user: str, password: str) -> AsyncIterator[Caller]:
    """Connect as a user for the length of a `with`."""
    host, _, port = server.url.removeprefix("nats://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    try:
        await reader.readline()
        told = {"user": user, "pass": password, "verbose": False, "headers": True, "protocol": 1}
        writer.write(b"CONNECT " + json.dumps(told | {"no_responders": True}).encode() + b"\r\n")
        found = Caller(reader, writer)
        assert not await found.refusal("PONG")
        yield found
    finally:
        writer.close()


@dataclass(frozen=True)
class Guarded:
    """A running broker with users, whose streams and consumers are as declared."""

    server: NatsServer
    access: Access

    async def surprises(self, user: str, tried: Iterable[Operation]) -> list[str]:
        """Try every operation as one user; what went otherwise than the rules say.

        What is allowed has to have its effect, too: an answer, where JetStream gives one.
        """
        found: list[str] = []
        awaited: set[str] = set()
        async with caller(self.server, user, self.access.passwords[user]) as one:
            assert not await one.refusal(f"SUB _INBOX_{user}.> 1")
            for number, each in enumerate(tried):
                inbox = f"_INBOX_{user}.{number}"
                refusal = await self._try(one, each, inbox)
                may = user in each.allowed
                if may == bool(refusal):
                    found.append(f"{user} {'may not' if refusal else 'may'} {each}")
                elif may and each.is_answered:
                    awaited.add(inbox)
            async with asyncio.timeout(10):
                await one.until_answered(awaited)
        return found

    async def _try(self, one: Caller, each: Operation, inbox: str) -> str:
        if each.verb == "PUB":
            return await one.refusal(f"PUB {each.subject} {inbox} {len(JUNK)}", JUNK)
        refusal = await one.refusal(f"SUB {each.subject} 2")
        await one.refusal("UNSUB 2")
        return refusal


@asynccontextmanager
async def guarded(folder: Path, users: Mapping[str, Permissions]) -> AsyncIterator[Guarded]:
    """Run a broker with these users and have provisioning make what is declared."""
    port = free_port()
    access = Access(users, {user: f"password-of-{user}" for user in (*users, ROUTE)})
    monitor_port = free_port(avoid={port})
    server = NatsServer(folder, port=port, monitor_port=monitor_port, access=access)
    server.start()
    try:
        broker = Broker(server.url_for("provision"), "anything")
        await broker.connect()
        await ensure(broker, STREAMS, DURABLES, replicas=1, bytes_max=STREAM_BYTES_MAX)
        await broker.close()
        yield Guarded(server, access)
    finally:
        server.terminate()


def forbidden(user: str, tried: Sequence[Operation]) -> Operation:
    """One thing that a user may not publish."""
    return next(each for each in tried if each.verb == "PUB" and user not in each.allowed)
