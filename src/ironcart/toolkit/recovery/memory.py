"""What a service's own published facts are to its tables."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from ironcart.toolkit import telemetry
from ironcart.toolkit.database import Connection
from ironcart.toolkit.envelope import Envelope, decode, decode_data
from ironcart.toolkit.history import Recorded
from ironcart.toolkit.outcomes import Fact, Poison

SEEN_BY_INBOX = """
SELECT 1 FROM inbox WHERE event_id = $1
UNION ALL SELECT 1 FROM failures WHERE stream = $2 AND stream_seq = $3
"""


@dataclass(frozen=True, slots=True)
class OwnFact:
    """One fact as it was published; `data` is the struct of its type."""

    aggregate_id: str
    version: int
    data: Any
    envelope: Envelope
    recorded: Recorded
    stream_seq: int


Fold = Callable[[Sequence[OwnFact], Connection], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Compared:
    """What of a table follows from the history: a query with `{schema}`.

    `unsettled` is a condition on live rows, with `{schema}` too, that are between two facts and
    cannot be compared yet.
    """

    table: str
    query: str
    unsettled: str = "false"


@dataclass(frozen=True, slots=True)
class Memory:
    """How a service's tables follow from its own published facts.

    `fold` applies facts to the tables, and never decides: those of an aggregate in order, though
    some may have been lost, and none that the tables already show. `adopts` are the types of
    others' facts that this history takes in as version 1. `after_fold` runs at the end of a
    recovery's folding, again when that was cut short; the facts that it returns are recorded with
    what it wrote. `seen` is a query that finds the trace of a message which was dealt with: $1 its
    key, $2 its stream, $3 its sequence.
    """

    stream: str
    kinds: Mapping[str, type[Struct]]
    fold: Fold
    compared: Sequence[Compared] = ()
    adopts: frozenset[str] = frozenset()
    after_fold: Callable[[Connection], Awaitable[Sequence[Fact] | None]] | None = None
    seen: str = SEEN_BY_INBOX


def own_fact(
    kinds: Mapping[str, type[Struct]], subject: str, body: bytes, stream_seq: int
) -> OwnFact | None:
    """Read a fact back, by the kinds of its stream; None when it is no fact of theirs."""
    kind = kinds.get(subject)
    if kind is None:
        return None
    try:
        envelope = decode(body)
        data = decode_data(envelope, {kind.__name__: kind})
    except Poison:
        return None
    version = envelope.version if isinstance(envelope.version, int) else 1
    context = telemetry.context({}, envelope.trace_id)
    recorded = Recorded(
        envelope.key, envelope.aggregate_id, version, envelope.type, subject, context, body
    )
    return OwnFact(envelope.aggregate_id, version, data, envelope, recorded, stream_seq)


def in_order(facts: Sequence[OwnFact]) -> list[OwnFact]:
    """Facts by version within each aggregate, which keeps its places among the others.

    A fact may have been published before an earlier one that was left to the sweeper.
    """
    own: dict[str, list[OwnFact]] = defaultdict(list)
    for fact in sorted(facts, key=lambda fact: fact.version, reverse=True):
        own[fact.aggregate_id].append(fact)
    return [own[fact.aggregate_id].pop() for fact in facts]
