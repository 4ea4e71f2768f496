"""Repairing dead letters: each action changes the parked message and tells of it, in one go."""

import hashlib
import secrets
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from ironcart.cli import services
from ironcart.events import aggregate_of, kinds_of
from ironcart.toolkit.broker import Delivery
from ironcart.toolkit.database import Connection, Database
from ironcart.toolkit.deadletters import (
    ACTIONS,
    DeadLetter,
    DeadLetterDiscarded,
    DeadLetterEdited,
    DeadLetterReplayed,
    letter_aggregate,
)
from ironcart.toolkit.history import Cause, History
from ironcart.toolkit.loop import Message
from ironcart.toolkit.loop.reading import read
from ironcart.toolkit.outcomes import Fact, Poison, Refused
from ironcart.toolkit.telemetry import context
from ironcart.toolkit.topology import Durable

REPLAYS_MAX = 3


@dataclass(frozen=True, slots=True)
class Row:
    """A parked message as its service keeps it."""

    no: int
    state: str
    replays: int
    reason: str
    body: bytes
    edited: bytes | None
    event_id: uuid.UUID | None
    aggregate_id: str
    headers: str
    waiting: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What has become of a parked message, and how many wait behind it."""

    state: str
    waiting: int


@dataclass(frozen=True, slots=True)
class Who:
    """Who acts, and why."""

    by: str
    why: str


class Repair:
    """One dead letter and its row, locked in an open transaction of its service's database."""

    def __init__(self, letter: DeadLetter, row: Row, connection: Connection) -> None:
        self.letter, self.row, self._connection = letter, row, connection

    def checked(self, body: bytes) -> Message:
        """Read a body exactly as the service will; raises `Refused` with what to change."""
        letter = self.letter
        headers = msgspec.json.decode(self.row.headers, type=dict[str, str])
        delivery = Delivery(
            letter.stream, letter.stream_seq, letter.subject, body, headers, 1, 0.0, ""
        )
        try:
            message = read(delivery, kinds_of(_durable(letter)), aggregate_of)
        except Poison as error:
            raise Refused(f"dead letter {letter.seq}: {error}") from error
        if self.row.event_id not in (None, message.key):
            raise Refused(f"dead letter {letter.seq}: keep the event's id as it was")
        if self.row.aggregate_id not in ("", message.envelope.aggregate_id):
            raise Refused(f"dead letter {letter.seq}: keep aggregate_id {self.row.aggregate_id}")
        return message

    async def edit(self, body: bytes, who: Who) -> None:
        """Replace what is to be replayed; the original bytes stay."""
        self._must_be_parked()
        message = self.checked(body)
        aggregate_id = message.envelope.aggregate_id
        await self._connection.execute(_EDIT, self.row.no, body, aggregate_id)
        digest = hashlib.sha256(body).hexdigest()
        await self._tell(DeadLetterEdited(*self._named(), who.by, who.why, digest))

    def may_be_replayed(self, *, force: bool) -> Message:
        """Say what will be dealt with; raises `Refused` when it would come to nothing."""
        self._must_be_parked()
        if self.row.replays >= REPLAYS_MAX and not force:
            raise Refused(
                f"dead letter {self.letter.seq} was replayed {self.row.replays} times and came back"
                f" ({self.row.reason}): edit or discard it, or insist with --force"
            )
        return self.checked(self.row.edited or self.row.body)

    async def replay(self, who: Who, *, force: bool) -> None:
        """Let it be dealt with again, and then what waits behind it."""
        self.may_be_replayed(force=force)
        await self._connection.execute(_RELEASE, self.row.no)
        replays = self.row.replays + 1
        await self._tell(DeadLetterReplayed(*self._named(), who.by, who.why, replays))

    async def discard(self, who: Who) -> None:
        """Give it up for good; what waits behind it goes on."""
        self._must_be_parked()
        await self._connection.execute(_DISCARD, self.row.no)
        await self._tell(DeadLetterDiscarded(*self._named(), who.by, who.why))

    def _must_be_parked(self) -> None:
        if self.row.state != "parked":
            raise Refused(f"dead letter {self.letter.seq} is {self.row.state} already")

    def _named(self) -> tuple[str, str, int, str]:
        event_id = "" if self.row.event_id is None else str(self.row.event_id)
        return self.letter.service, self.letter.stream, self.letter.stream_seq, event_id

    async def _tell(self, data: Any) -> None:
        aggregate_id = letter_aggregate(self.letter.service, self.letter.seq)
        version = 1 + await self._connection.fetchval(_VERSIONS, aggregate_id)
        trace_id = secrets.token_hex(16)
        history = History(self.letter.service, ACTIONS)
        cause = Cause(trace_id, context({}, trace_id))
        await history.record(self._connection, [(Fact(aggregate_id, version, data), cause)])


@asynccontextmanager
async def repairing(letter: DeadLetter, databases: Mapping[str, str]) -> AsyncIterator[Repair]:
    """Lock a dead letter's row; what is done inside becomes true at the end, or not at all."""
    if letter.service not in services.NAMES:
        raise Refused(f"dead letter {letter.seq} is of {letter.service!r}, which is no service")
    services.find(letter.service)  # Its code takes seconds to load: no row is locked meanwhile.
    database = Database(databases[letter.service], letter.service, "repair")
    try:
        async with database.transaction() as connection:
            row = await connection.fetchrow(_LOCK, letter.stream, letter.stream_seq)
            if row is None:
                raise Refused(f"dead letter {letter.seq}: {letter.service} does not know it")
            yield Repair(letter, Row(*row), connection)
    finally:
        await database.close()


async def standing(
    letters: Sequence[DeadLetter], databases: Mapping[str, str]
) -> dict[int, Standing]:
    """How dead letters stand with their services, by their number; without those nobody knows.

    Bodies are not read: there may be many, and each may be large.
    """
    found: dict[int, Standing] = {}
    for service in services.NAMES:
        mine = {
            (each.stream, each.stream_seq): each.seq for each in letters if each.service == service
        }
        if not mine:
            continue
        database = Database(databases[service], service, "repair")
        try:
            places = zip(*mine, strict=True)
            for row in await database.fetch(_STANDING, *(list(column) for column in places)):
                found[mine[row["stream"], row["stream_seq"]]] = Standing(
                    row["state"], row["waiting"]
                )
        finally:
            await database.close()
    return found


async def row_of(letter: DeadLetter, databases: Mapping[str, str]) -> Row | None:
    """What its service has of one dead letter, with the bodies."""
    found = await _fetch(letter, databases, _ONE, letter.stream, letter.stream_seq)
    return Row(*found[0]) if found else None


async def behind(letter: DeadLetter, databases: Mapping[str, str]) -> list[str]:
    """Say which messages wait behind a dead letter, in the order in which they will follow it."""
    found = await _fetch(letter, databases, _BEHIND, letter.stream, letter.stream_seq)
    return [f"{stream} {seq}  {kind}" for stream, seq, kind in found]


async def actions(letter: DeadLetter, databases: Mapping[str, str]) -> list[str]:
    """Say what was done about a dead letter so far, oldest first: when, what, by whom, and why."""
    aggregate_id = letter_aggregate(letter.service, letter.seq)
    told: list[str] = []
    for kind, body, at in await _fetch(letter, databases, _ACTIONS_SO_FAR, aggregate_id):
        data = msgspec.json.decode(body)["data"]
        why = f": {data['why']}" if data["why"] else ""
        told.append(f"{at.isoformat(timespec='milliseconds')}  {kind} by {data['by']}{why}")
    return told


async def _fetch(
    letter: DeadLetter, databases: Mapping[str, str], query: str, *arguments: object
) -> list[Any]:
    if letter.service not in services.NAMES:
        return []
    database = Database(databases[letter.service], letter.service, "repair")
    try:
        return list(await database.fetch(query, *arguments))
    finally:
        await database.close()


def _durable(letter: DeadLetter) -> Durable:
    card = services.find(letter.service)
    found = next((each for each in card.durables if each.stream == letter.stream), None)
    if found is None:
        raise Refused(f"dead letter {letter.seq}: {letter.service} does not read {letter.stream}")
    return found


_WAITING = """
(SELECT count(*)::int FROM parked w WHERE w.aggregate_id = p.aggregate_id AND p.aggregate_id <> ''
 AND w.state = 'waiting') AS waiting
"""
_ROW = f"""
p.no, p.state, p.replays, p.reason, p.body, p.edited, p.event_id, p.aggregate_id, p.headers,
{_WAITING}
"""
_ONE = f"""
SELECT {_ROW} FROM parked p WHERE p.stream = $1 AND p.stream_seq = $2
"""  # noqa: S608 - a constant
_LOCK = f"{_ONE} FOR UPDATE OF p"
_STANDING = f"""
SELECT p.stream, p.stream_seq, p.state, {_WAITING}
FROM parked p JOIN unnest($1::text[], $2::bigint[]) AS l(stream, stream_seq)
  USING (stream, stream_seq)
WHERE p.state <> 'waiting' AND p.letter_seq IS NOT NULL
"""  # noqa: S608 - a constant
_EDIT = """
UPDATE parked SET edited = $2, aggregate_id = $3, replays = 0, changed_at = now() WHERE no = $1
"""
_RELEASE = """
UPDATE parked SET state = 'released', replays = replays + 1, attempts = 0, due_at = now(),
                  changed_at = now() WHERE no = $1
"""
_DISCARD = "UPDATE parked SET state = 'discarded', changed_at = now() WHERE no = $1"
_VERSIONS = "SELECT coalesce(max(version), 0) FROM events WHERE aggregate_id = $1"
_BEHIND = """
SELECT w.stream, w.stream_seq, w.type
FROM parked p JOIN parked w ON w.aggregate_id = p.aggregate_id AND p.aggregate_id <> ''
WHERE p.stream = $1 AND p.stream_seq = $2 AND w.state = 'waiting' ORDER BY w.no
"""
_ACTIONS_SO_FAR = """
SELECT type, body, recorded_at FROM events WHERE aggregate_id = $1 ORDER BY version
"""
