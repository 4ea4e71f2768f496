"""Repairs: what a person does about a dead letter, and the event that says so, in one transaction.

An action changes the row in `parked` and appends to the service's own history: it is audited like
every fact. `Releases` does the rest, in the service.
"""

import hashlib
import secrets
import uuid
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

from ironcart.toolkit import telemetry
from ironcart.toolkit.database import Connection
from ironcart.toolkit.history import Cause, History
from ironcart.toolkit.loop import parking
from ironcart.toolkit.loop.parking import OPEN, Parked
from ironcart.toolkit.outcomes import Fact, Refused

REPLAYS_MAX = 3
WHY_CHARACTERS_MAX = 500

Said = Annotated[str, Meta(max_length=WHY_CHARACTERS_MAX)]


class _Repair(Struct, frozen=True):
    """Who did what about which message, and why; never what is in it."""

    by: Said
    why: Said
    event_id: str
    stream: str
    stream_seq: int


class DeadLetterEdited(_Repair, frozen=True):
    """A body was written in place of the original, which is kept."""

    sha256: str


class DeadLetterReplayed(_Repair, frozen=True):
    """It is to be dealt with again, and then what waits behind it."""

    replays: int


class DeadLetterDiscarded(_Repair, frozen=True):
    """It will not be dealt with; what waits behind it will."""


@dataclass(frozen=True, slots=True)
class Open:
    """A dead letter that can be repaired: `seq` is its place among the dead letters."""

    seq: int
    parked: Parked
    replays: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Repairs:
    """One person's actions on one service's dead letters; each in the caller's transaction."""

    service: str
    by: str
    why: str

    async def find(self, connection: Connection, seq: int) -> Open | None:
        """Lock one that is open, by its place among the dead letters."""
        row = await connection.fetchrow(_FIND, seq)
        if row is None:
            return None
        waiting: int = await connection.fetchval(_BEHIND, row["aggregate_id"])
        return Open(seq, parking.of(row), row["replays"], waiting)

    async def edit(self, connection: Connection, found: Open, body: bytes) -> None:
        """Put a body in place of the original, which stays; the caller has validated it."""
        await connection.execute(_EDIT, found.parked.no, body)
        sha256 = hashlib.sha256(body).hexdigest()
        await self._say(connection, found, DeadLetterEdited(*self._about(found), sha256))

    async def replay(self, connection: Connection, found: Open, *, force: bool) -> None:
        """Have it dealt with again; raises `Refused` when that was tried often enough."""
        if found.replays >= REPLAYS_MAX and not force:
            raise Refused(f"replayed {found.replays} times already: edit or discard it, or --force")
        await connection.execute(_REPLAY, found.parked.no)
        data = DeadLetterReplayed(*self._about(found), found.replays + 1)
        await self._say(connection, found, data)

    async def discard(self, connection: Connection, found: Open) -> None:
        """Give it up, for good: what waits behind it goes on."""
        await connection.execute(_DISCARD, found.parked.no)
        await self._say(connection, found, DeadLetterDiscarded(*self._about(found)))

    def _about(self, found: Open) -> tuple[str, str, str, str, int]:
        parked = found.parked
        why = self.why[:WHY_CHARACTERS_MAX]
        return self.by, why, str(parked.event_id or ""), parked.stream, parked.stream_seq

    async def _say(self, connection: Connection, found: Open, data: _Repair) -> None:
        name = aggregate_of(self.service, found.seq)
        said: int = await connection.fetchval(_VERSION, name)
        trace_id = secrets.token_hex(16)
        cause = Cause(trace_id, telemetry.context({}, trace_id), data.event_id or None)
        history = History(self.service, subjects_of(self.service))
        await history.record(connection, [(Fact(name, said + 1, data), cause)])


def aggregate_of(service: str, seq: int) -> str:
    """What the audit knows the repairs of one dead letter by."""
    return f"dlq-{service}-{seq}"


def subjects_of(service: str) -> dict[str, str]:
    """Where each action goes: beside the dead letters of the service."""
    return {
        DeadLetterEdited.__name__: f"dlq.{service}.edited",
        DeadLetterReplayed.__name__: f"dlq.{service}.replayed",
        DeadLetterDiscarded.__name__: f"dlq.{service}.discarded",
    }


def check_same(parked: Parked, event_id: uuid.UUID, aggregate_id: str) -> None:
    """Raise `Refused` unless an edited event is still the one that was set aside."""
    if parked.event_id is not None and parked.event_id != event_id:
        raise Refused(f"id must stay {parked.event_id}: by it a repeat is known")
    if parked.aggregate_id and parked.aggregate_id != aggregate_id:
        raise Refused(
            f"aggregate_id must stay {parked.aggregate_id}: its later events wait behind this one"
        )


_FIND = f"""
SELECT {parking.COLUMNS}, replays FROM parked
WHERE letter_seq = $1 AND state = 'parked' FOR UPDATE
"""  # noqa: S608 - constants
_BEHIND = f"""
SELECT count(*) FROM parked WHERE aggregate_id = $1 AND aggregate_id <> ''
  AND state IN {OPEN}
"""  # noqa: S608 - a constant
_EDIT = "UPDATE parked SET edited = $2, changed_at = now() WHERE no = $1"
_REPLAY = """
UPDATE parked SET state = 'released', replays = replays + 1, attempts = 0, due_at = now(),
                  changed_at = now()
WHERE no = $1
"""
_DISCARD = "UPDATE parked SET state = 'discarded', changed_at = now() WHERE no = $1"
_VERSION = "SELECT coalesce(max(version), 0) FROM events WHERE aggregate_id = $1"
