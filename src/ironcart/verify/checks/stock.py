"""I4: stock, replayed from the INVENTORY events, is never oversold at any prefix of the log."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ironcart.verify.facts import TERMINAL, Event, Facts, Lines
from ironcart.verify.findings import Faults, Finding


@dataclass(slots=True)
class Replay:
    """Quantities by SKU after a replay, and the first event that took a SKU below zero."""

    on_hand: Counter[str] = field(default_factory=Counter)
    reserved: Counter[str] = field(default_factory=Counter)
    sold: Counter[str] = field(default_factory=Counter)
    below_zero: dict[str, Event] = field(default_factory=dict)


def replay(events: Iterable[Event]) -> Replay:
    """Apply stock events one after the other, looking at every SKU touched after each.

    Units whose adjustment was lost with a database were there before what was promised of them.
    """
    events = list(events)
    result = Replay()
    for event in events:
        if event.made_good:
            result.on_hand[event.aggregate] += event.delta
    for event in events:
        for sku, hand, held in _changes(event):
            result.on_hand[sku] += hand
            result.reserved[sku] += held
            if event.type == "StockCommitted":
                result.sold[sku] -= hand
            if not 0 <= result.reserved[sku] <= result.on_hand[sku]:
                result.below_zero.setdefault(sku, event)
    return result


def stock(facts: Facts) -> Finding:
    """I4: never negative at any prefix, ends as inventory.stock says, sold = confirmed lines.

    A prefix is judged in stream order; a SKU that is negative there is judged again in the order of
    inventory's own history, because an event may reach the stream after a younger one when the
    broker was away in between. Only a SKU negative in both was oversold.
    """
    faults = Faults()
    events = facts.owned("INVENTORY")
    seen = replay(events)
    told = replay(sorted(events, key=lambda event: event.recorded)) if seen.below_zero else seen
    overtaken = seen.below_zero.keys() - told.below_zero.keys()
    for sku, event in seen.below_zero.items():
        if sku not in overtaken:
            faults.add("oversold", f"{sku} by {event.aggregate} at INVENTORY {event.seq}")
    for sku in sorted(seen.on_hand.keys() | facts.stock.keys()):
        row = facts.stock.get(sku)
        in_table = (row.on_hand, row.reserved) if row else (0, 0)
        in_stream = (seen.on_hand[sku], seen.reserved[sku])
        if in_table != in_stream:
            faults.add(
                "the table differs from the replay (on hand, reserved)",
                f"{sku} {in_table} {in_stream}",
            )
    _compare_orders(facts, events, seen.sold, faults)
    return Finding(
        "I4",
        "stock",
        "INVENTORY, inventory.stock, inventory.reservations, orders.orders",
        {
            "events": len(events),
            "SKUs": len(seen.on_hand),
            "on hand": seen.on_hand.total(),
            "reserved": seen.reserved.total(),
            "sold": seen.sold.total(),
            "made good": sum(event.delta for event in events if event.made_good),
            "prefixes out of order": len(overtaken),
        },
        faults,
    )


def _changes(event: Event) -> Iterator[tuple[str, int, int]]:
    """Yield (SKU, change on hand, change reserved)."""
    match event.type:
        case "StockAdjusted":
            yield event.aggregate, 0 if event.made_good else event.delta, 0
        case "StockReserved":
            yield from ((sku, 0, quantity) for sku, quantity in event.lines)
        case "StockCommitted":
            yield from ((sku, -quantity, -quantity) for sku, quantity in event.lines)
        case "StockReleased":
            yield from ((sku, 0, -quantity) for sku, quantity in event.lines)


def _compare_orders(facts: Facts, events: list[Event], sold: Counter[str], faults: Faults) -> None:
    held = {event.aggregate: event.lines for event in events if event.type == "StockReserved"}
    _check_ends(events, held, faults)
    due: Counter[str] = Counter()
    for order in facts.orders.values():
        state = facts.reservations.get(order.order_id)
        if order.status in TERMINAL and state == "reserved" and not facts.moving:
            faults.add(f"{order.status}, but stock is still reserved", order.order_id)
        if held.get(order.order_id, order.lines) != order.lines:
            faults.add("reserved other lines than were ordered", order.order_id)
        if order.status == "confirmed":
            due.update(dict(order.lines))
        elif state == "committed":
            faults.add("sold, but not confirmed", order.order_id)
    for sku in sorted(due.keys() | sold.keys()):
        # What is confirmed while we look is sold a moment later, never a moment before.
        if due[sku] < sold[sku] or (due[sku] != sold[sku] and not facts.moving):
            faults.add("sold differs from the confirmed lines", f"{sku} {sold[sku]} {due[sku]}")


def _check_ends(events: list[Event], held: dict[str, Lines], faults: Faults) -> None:
    """A reservation ends once, by commit or by release, with the lines it was made with."""
    ended: set[str] = set()
    for event in events:
        if event.type in {"StockCommitted", "StockReleased"}:
            if event.aggregate in ended:
                faults.add("a reservation ended more than once", event.aggregate)
            ended.add(event.aggregate)
            if event.lines != held.get(event.aggregate, ()):
                faults.add(f"{event.type} has other lines than were reserved", event.aggregate)
