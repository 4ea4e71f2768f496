"""I10: streams without holes that never went back in time; every event has a cause and a trace."""

from ironcart.verify.checks.histories import Histories
from ironcart.verify.facts import OWNERS, Event, Facts, StreamFacts
from ironcart.verify.findings import Faults, Finding

# Events that somebody outside may start; every other event follows from one before it.
ROOTS = frozenset({"OrderCreated", "OrderCancellationRequested", "StockAdjusted", "RefundIssued"})


def continuity(facts: Facts, histories: Histories, older: dict[str, int]) -> Finding:
    """I10: contiguous sequences, histories within them, every causation id known, every trace id.

    Each order is one tree, rooted at its OrderCreated (whose own cause, if it came from elsewhere,
    is nobody's business here); every other event has a cause about the same order. `older` says how
    many messages of each stream the audit has from before it was made again.
    """
    faults = Faults()
    faults.merge(histories.places)
    for name, stream in facts.streams.items():
        _check_sequences(stream, older.get(name, 0), faults)
        if histories.highest.get(name, 0) > stream.last_seq:
            faults.add(
                "the broker went back in time: a history knows a higher sequence",
                f"{name} {histories.highest[name]} > {stream.last_seq}",
            )
    known: dict[bytes, Event] = {}
    for name in OWNERS:
        known.update(histories.first.get(name, {}))
        known.update({event.id: event for event in facts.pending.get(name, ())})
    orders = {event.aggregate for event in known.values() if event.type == "OrderCreated"}
    caused = 0
    for name in OWNERS:
        for event in facts.owned(name):
            caused += bool(event.cause)
            _check_origin(event, known, orders, faults)
    _check_circles(known, faults)
    return Finding(
        "I10",
        "continuity",
        "the streams, every service's events",
        {
            "streams": len(facts.streams),
            "messages": sum(len(stream.events) for stream in facts.streams.values()),
            "trees": len(orders),
            "with a cause": caused,
        },
        faults,
    )


def _check_circles(known: dict[bytes, Event], faults: Faults) -> None:
    """Every chain of causes has an end; whoever has a cause is then below a root."""
    ends: set[bytes] = set()
    for event in known.values():
        path: dict[bytes, None] = {}
        at: Event | None = event
        while at is not None and at.id not in ends:
            if at.id in path:
                faults.add("caused by itself", f"{at.aggregate} {at.type} at {at.stream} {at.seq}")
                break
            path[at.id] = None
            at = known.get(at.cause) if at.cause and at.type != "OrderCreated" else None
        ends.update(path)


def _check_sequences(stream: StreamFacts, older: int, faults: Faults) -> None:
    # A stream that was made again begins above all that its older self had: the audit has that.
    if stream.messages and stream.first_seq != older + 1:
        faults.add("the beginning of a stream is gone", f"{stream.name} from {stream.first_seq}")
    expected = stream.first_seq
    for event in stream.events:
        if event.seq != expected:
            hole = f"{stream.name} {expected} to {event.seq - 1}"
            faults.add("messages missing in a stream", hole, event.seq - expected)
        expected = event.seq + 1
    if stream.messages and expected <= stream.last_seq:
        hole = f"{stream.name} {expected} to {stream.last_seq}"
        faults.add("messages missing in a stream", hole, stream.last_seq - expected + 1)


def _check_origin(
    event: Event, known: dict[bytes, Event], orders: set[str], faults: Faults
) -> None:
    shown = f"{event.aggregate} {event.type} at {event.stream} {event.seq}"
    if not event.traced:
        faults.add("no trace id", shown)
    if event.type != "StockAdjusted" and event.aggregate not in orders:
        faults.add("about an order that nobody created", shown)
    if event.cause and event.type != "OrderCreated":
        cause = known.get(event.cause)
        if cause is None:
            faults.add("caused by an event nobody knows", shown)
        elif cause.aggregate != event.aggregate:
            faults.add("caused by an event about something else", shown)
    elif not event.cause and event.type not in ROOTS:
        faults.add("no cause", shown)
