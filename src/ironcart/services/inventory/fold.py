"""What inventory's own facts say about its tables: how they are put together again."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import structlog

from ironcart.events import (
    OWNERS,
    Line,
    StockAdjusted,
    StockCommitted,
    StockRejected,
    StockReleased,
    StockReserved,
)
from ironcart.services.inventory.handlers import lines_of
from ironcart.services.inventory.store import Change, Reservation, Store
from ironcart.toolkit.database import Connection
from ironcart.toolkit.outcomes import Fact
from ironcart.toolkit.recovery import Compared, Memory, OwnFact

# Why stock was adjusted when it was not a person who did it: see `pay_what_is_owed`.
RECOVERED: Final = "recovered"

_STATES: Final[Mapping[type, str]] = {
    StockReserved: "reserved",
    StockRejected: "rejected",
    StockCommitted: "committed",
    StockReleased: "released",
}


def lines_told(
    data: StockReserved | StockRejected | StockCommitted | StockReleased,
) -> tuple[Line, ...]:
    """The units that a fact is about; a rejected order holds none."""
    if isinstance(data, StockReserved):
        return lines_of(data.items or ())
    return () if isinstance(data, StockRejected) else data.lines


def fold_one(before: Reservation | None, fact: OwnFact) -> Reservation:
    """Apply one fact to one row; one that a later fact has overtaken changes nothing any more."""
    if before is not None and fact.version <= before.version:
        return before
    lines = lines_told(fact.data)
    return Reservation(fact.aggregate_id, _STATES[type(fact.data)], lines, fact.version)


def changes_between(before: Reservation | None, after: Reservation) -> Iterator[tuple[str, Change]]:
    """What going from one row to the other does to the shelves.

    Only what the row before says is reserved is set free: the fact of it may have been lost.
    """
    if after is before:
        return
    if before is not None and before.state == "reserved":
        for line in before.lines:
            yield line.sku, Change(reserved=-line.quantity)
    for line in after.lines:
        if after.state == "reserved":
            yield line.sku, Change(reserved=line.quantity)
        elif after.state == "committed":
            yield line.sku, Change(on_hand=-line.quantity)


async def fold(facts: Sequence[OwnFact], connection: Connection) -> None:
    """Apply facts, in any order, to the tables; what they do to one SKU is summed first."""
    store = Store(connection)
    changes: dict[str, Change] = defaultdict(Change)
    versions: dict[str, int] = defaultdict(int)
    known = await store.reservations(
        {fact.aggregate_id for fact in facts if not isinstance(fact.data, StockAdjusted)}
    )
    now = dict(known)
    for fact in facts:
        if isinstance(fact.data, StockAdjusted):
            changes[fact.data.sku] += Change(on_hand=fact.data.delta)
            versions[fact.data.sku] = max(versions[fact.data.sku], fact.version)
            continue
        before = now.get(fact.aggregate_id)
        now[fact.aggregate_id] = after = fold_one(before, fact)
        for sku, change in changes_between(before, after):
            changes[sku] += change
    if added := [row for order_id, row in now.items() if order_id not in known]:
        await store.add(added)
    if changed := [row for order_id, row in now.items() if row is not known.get(order_id, row)]:
        await store.change(changed)
    await store.fold_in(changes, versions)


async def pay_what_is_owed(connection: Connection) -> Sequence[Fact]:
    """After all is folded: say what was lost, of SKUs with more promised or sold than was brought.

    That units were promised or sold proves that they were there, so the fact that brought them was
    lost with the database: one that says so takes its place. How many more there were, if any, a
    person has to count.
    """
    owed = await Store(connection).pay_what_is_owed()
    for sku, _, units in owed:
        structlog.get_logger().error(
            "An adjustment of stock was lost: adjusted to what is promised; count what is there",
            sku=sku,
            units=units,
        )
    return [
        Fact(sku, version, StockAdjusted(sku, units, RECOVERED)) for sku, version, units in owed
    ]


# A rejected order's lines are nowhere told; a SKU that was never adjusted was only looked at.
_RESERVATIONS = """
SELECT order_id, state, version, CASE WHEN state = 'rejected' THEN NULL ELSE lines END AS lines
FROM {schema}.reservations
"""
_STOCK = """
SELECT sku, on_hand - owed AS on_hand, reserved, version
FROM {schema}.stock WHERE version > 0 OR owed > 0
"""
STREAM, _KINDS = OWNERS["inventory"]
MEMORY = Memory(
    STREAM,
    {subject: kind for kind, subject in _KINDS.items()},
    fold,
    [Compared("reservations", _RESERVATIONS), Compared("stock", _STOCK)],
    after_fold=pay_what_is_owed,
)
