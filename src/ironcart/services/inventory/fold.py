"""What inventory's own facts say about its tables: how they are put together again."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

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
from ironcart.toolkit.recovery import Compared, Memory, OwnFact

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


def change_of(line: Line, data: object) -> Change:
    """What a fact does to the shelf of one of its lines."""
    match data:
        case StockReserved():
            return Change(reserved=line.quantity)
        case StockCommitted():
            return Change(on_hand=-line.quantity, reserved=-line.quantity)
        case StockReleased():
            return Change(reserved=-line.quantity)
    return Change()


async def fold(facts: Sequence[OwnFact], connection: Connection) -> None:
    """Apply facts to the tables; what they do to one SKU is summed first."""
    store = Store(connection)
    on_hand: dict[str, int] = defaultdict(int)
    reserved: dict[str, int] = defaultdict(int)
    versions: dict[str, int] = defaultdict(int)
    rows: dict[str, Reservation] = {}
    known = await store.reservations(
        {fact.aggregate_id for fact in facts if not isinstance(fact.data, StockAdjusted)}
    )
    for fact in facts:
        if isinstance(fact.data, StockAdjusted):
            on_hand[fact.data.sku] += fact.data.delta
            versions[fact.data.sku] = max(versions[fact.data.sku], fact.version)
            continue
        lines = lines_told(fact.data)
        for line in lines:
            change = change_of(line, fact.data)
            on_hand[line.sku] += change.on_hand
            reserved[line.sku] += change.reserved
        state = _STATES[type(fact.data)]
        rows[fact.aggregate_id] = Reservation(fact.aggregate_id, state, lines, fact.version)
    if added := [row for order_id, row in rows.items() if order_id not in known]:
        await store.add(added)
    if changed := [row for order_id, row in rows.items() if order_id in known]:
        await store.change(changed)
    skus = sorted({*on_hand, *reserved})
    await connection.execute(
        "INSERT INTO stock (sku, on_hand) SELECT sku, 0 FROM unnest($1::text[]) AS sku"
        " ON CONFLICT DO NOTHING",
        skus,
    )
    await connection.execute(
        "UPDATE stock s SET on_hand = s.on_hand + u.on_hand, reserved = s.reserved + u.reserved,"
        " version = greatest(s.version, u.version), updated_at = now()"
        " FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::int[])"
        " AS u(sku, on_hand, reserved, version) WHERE s.sku = u.sku",
        skus,
        [on_hand[sku] for sku in skus],
        [reserved[sku] for sku in skus],
        [versions[sku] for sku in skus],
    )


# A rejected order's lines are nowhere told; a SKU that was never adjusted was only looked at.
_RESERVATIONS = """
SELECT order_id, state, version, CASE WHEN state = 'rejected' THEN NULL ELSE lines END AS lines
FROM {schema}.reservations
"""
_STOCK = "SELECT sku, on_hand, reserved, version FROM {schema}.stock WHERE version > 0"
STREAM, _KINDS = OWNERS["inventory"]
MEMORY = Memory(
    STREAM,
    {subject: kind for kind, subject in _KINDS.items()},
    fold,
    [Compared("reservations", _RESERVATIONS), Compared("stock", _STOCK)],
)
