"""Events: a service's event-sourced history and its outbox in one table."""

import uuid
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from ironcart.toolkit.broker import Outgoing
from ironcart.toolkit.database import Connection
from ironcart.toolkit.envelope import seal
from ironcart.toolkit.outcomes import Fact, Poison
from ironcart.toolkit.telemetry import TraceContext
from ironcart.toolkit.topology import MESSAGE_BYTES_MAX

# Room for the subject, the dedupe id, the batch headers and the trace.
ENVELOPE_HEADER_BYTES_MAX = 2_048


class Cause(Struct, frozen=True):
    """What led to a fact: the trace it belongs to and, if there is one, the event before it."""

    trace_id: str
    context: TraceContext
    causation_id: str | None = None


class Recorded(Struct, frozen=True):
    """A sealed event, ready to be appended: its bytes never change again."""

    id: uuid.UUID
    aggregate_id: str
    version: int
    type: str
    subject: str
    context: TraceContext
    body: bytes

    def outgoing(self) -> Outgoing:
        """The message that travels."""
        return Outgoing(str(self.id), self.subject, self.body, trace_headers(self.context))


class Commit(Struct, frozen=True):
    """The events of one transaction, in order."""

    batch_no: int
    messages: Sequence[Outgoing]
    events: Sequence[Recorded] = ()


class History:
    """Seals facts of one owner and appends them, inside the caller's transaction."""

    def __init__(self, owner: str, subjects: Mapping[str, str]) -> None:
        self.owner = owner
        self._subjects = subjects
        # While what was published is being folded back and delivered again: see toolkit.recovery.
        self.recovering = False

    def seal(self, fact: Fact, cause: Cause) -> Recorded:
        """Encode a fact for good; raises `Poison` when it would be too large to travel."""
        kind = type(fact.data).__name__
        key, body = seal(self.owner, fact, trace_id=cause.trace_id, causation_id=cause.causation_id)
        if len(body) > MESSAGE_BYTES_MAX - ENVELOPE_HEADER_BYTES_MAX:
            raise Poison(f"{kind} would be {len(body)} bytes, too large to travel")
        return Recorded(
            key,
            fact.aggregate_id,
            fact.version,
            kind,
            self._subjects[kind],
            cause.context,
            body,
        )

    async def append(self, connection: Connection, events: Sequence[Recorded]) -> Commit:
        """Keep events, at least one, as one batch; a version that exists fails the transaction."""
        batch_no: int = await connection.fetchval(
            _APPEND,
            len(events),
            *_columns(events),
        )
        return Commit(batch_no, [event.outgoing() for event in events], events)

    async def record(
        self, connection: Connection, facts: Iterable[tuple[Fact, Cause]]
    ) -> Commit | None:
        """Seal facts and append them; None when there are none."""
        events = [self.seal(fact, cause) for fact, cause in facts]
        return await self.append(connection, events) if events else None

    async def adopt(
        self, connection: Connection, events: Sequence[Recorded], stream_seqs: Sequence[int]
    ) -> None:
        """Keep events that somebody else published, as they are; they are never republished."""
        batch_no = await connection.fetchval(_APPEND, len(events), *_columns(events))
        await connection.execute(
            "UPDATE events e SET stream_seq = s.seq"
            " FROM unnest($2::bigint[]) WITH ORDINALITY AS s(seq, n)"
            " WHERE e.batch_no = $1 AND e.batch_pos = s.n - 1",
            batch_no,
            stream_seqs,
        )
        await connection.execute(
            "UPDATE batches SET first_seq = $2 WHERE batch_no = $1", batch_no, stream_seqs[0]
        )


_APPEND = """
WITH b AS (INSERT INTO batches (n) VALUES ($1) RETURNING batch_no),
     e AS (
       INSERT INTO events (id, aggregate_id, version, type, subject, traceparent, body,
                           batch_no, batch_pos)
       SELECT u.id, u.aggregate_id, u.version, u.type, u.subject, u.traceparent, u.body,
              b.batch_no, u.n - 1
       FROM b, unnest($2::uuid[], $3::text[], $4::int[], $5::text[], $6::text[], $7::text[],
                      $8::bytea[])
         WITH ORDINALITY AS u(id, aggregate_id, version, type, subject, traceparent, body, n))
SELECT batch_no FROM b
"""


def _columns(events: Sequence[Recorded]) -> tuple[list[object], ...]:
    return (
        [event.id for event in events],
        [event.aggregate_id for event in events],
        [event.version for event in events],
        [event.type for event in events],
        [event.subject for event in events],
        [stored_trace(event.context) for event in events],
        [event.body for event in events],
    )


def trace_headers(context: TraceContext) -> dict[str, str]:
    """The headers that carry a trace on."""
    headers = {"traceparent": context.traceparent}
    if context.state:
        headers["tracestate"] = context.state
    return headers


def stored_trace(context: TraceContext) -> str:
    """A trace's headers as one column: traceparent, then tracestate after a space."""
    return f"{context.traceparent} {context.state}".rstrip()
