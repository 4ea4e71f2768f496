"""Reserve, commit and release stock. Above `deal_with_orders` everything is pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from ironcart.events import (
    CURRENCY_DEFAULT,
    Item,
    Line,
    OrderCancelled,
    OrderConfirmed,
    OrderCreated,
    OrderRejected,
    Shortage,
    StockAdjusted,
    StockCommitted,
    StockRejected,
    StockReleased,
    StockReserved,
    minor_units,
)
from ironcart.services.inventory.store import Change, Reservation, Shelf, Store
from ironcart.toolkit.database import Transaction
from ironcart.toolkit.loop import Message
from ironcart.toolkit.outcomes import Done, Fact, Outcome, Park, Retry

DECIDE, AS_IS, BEHIND = "decide", "as it is", "our history is behind"

# (state, event) -> what to do: every pair is here. An order that is cancelled or rejected before it
# was heard of leaves a tombstone: released, with no lines.
TABLE: Mapping[tuple[str, type], str] = {
    ("none", OrderCreated): DECIDE,
    ("reserved", OrderCreated): AS_IS,
    ("rejected", OrderCreated): AS_IS,
    ("committed", OrderCreated): AS_IS,
    ("released", OrderCreated): AS_IS,
    ("none", OrderConfirmed): BEHIND,
    ("reserved", OrderConfirmed): "committed",
    ("rejected", OrderConfirmed): AS_IS,
    ("committed", OrderConfirmed): AS_IS,
    ("released", OrderConfirmed): AS_IS,
    ("none", OrderRejected): "released",
    ("reserved", OrderRejected): "released",
    ("rejected", OrderRejected): AS_IS,
    ("committed", OrderRejected): AS_IS,
    ("released", OrderRejected): AS_IS,
    ("none", OrderCancelled): "released",
    ("reserved", OrderCancelled): "released",
    ("rejected", OrderCancelled): AS_IS,
    ("committed", OrderCancelled): AS_IS,
    ("released", OrderCancelled): AS_IS,
}


def lines_of(items: Iterable[Item]) -> tuple[Line, ...]:
    """Add equal SKUs up; an order is reserved by units of a SKU."""
    units: dict[str, int] = defaultdict(int)
    for item in items:
        units[item.sku] += item.quantity
    return tuple(Line(sku, quantity) for sku, quantity in units.items())


def shortages(lines: Sequence[Line], available: Mapping[str, int]) -> tuple[Shortage, ...]:
    """Say which lines cannot be had."""
    return tuple(
        Shortage(line.sku, line.quantity, max(0, available.get(line.sku, 0)))
        for line in lines
        if available.get(line.sku, 0) < line.quantity
    )


class Ledger:
    """One batch's worth of decisions against stock that is locked: all lines or none, in order."""

    def __init__(
        self,
        reservations: Mapping[str, Reservation],
        shelves: Mapping[str, Shelf],
        currency: str = CURRENCY_DEFAULT,
    ) -> None:
        self._currency = currency
        self._known = dict(reservations)
        self._available = {sku: shelf.available for sku, shelf in shelves.items()}
        self._versions = {sku: shelf.version for sku, shelf in shelves.items()}
        self.added: dict[str, Reservation] = {}
        self.changed: dict[str, Reservation] = {}
        self.changes: dict[str, Change] = {}

    def deal_with(self, order_id: str, event: object) -> Outcome:
        """Decide one event; remembers what it does to the rows."""
        known = self._known.get(order_id)
        step = TABLE["none" if known is None else known.state, type(event)]
        if step == BEHIND:
            return Retry(f"{type(event).__name__} before OrderCreated: {BEHIND}")
        if step == AS_IS:
            return Done()
        if isinstance(event, OrderCreated):
            return self._reserve(event)
        return self._settle(known or Reservation(order_id, "none", (), 0), step)

    def _reserve(self, order: OrderCreated) -> Outcome:
        currency = order.currency or self._currency
        try:
            minor_units(order.amount, currency)  # As orders and payments will: all park, or none.
        except ValueError as error:
            return Park(str(error))
        lines = lines_of(order.items or ())
        short = shortages(lines, self._available)
        state = "rejected" if short else "reserved"
        version = self._version_after(order.order_id, 0)
        self._keep(Reservation(order.order_id, state, lines, version))
        if short:
            return Done((Fact(order.order_id, version, StockRejected(order.order_id, short)),))
        for line in lines:
            self._move(line.sku, reserved=line.quantity)
            self._available[line.sku] -= line.quantity
        reserved = StockReserved(
            order.order_id,
            order.customer_id,
            order.amount,
            currency,
            order.items,
            order.payment_method,
            order.contact,
        )
        return Done((Fact(order.order_id, version, reserved),))

    def _settle(self, known: Reservation, state: str) -> Outcome:
        for line in known.lines:
            gone = line.quantity if state == "committed" else 0
            self._move(line.sku, on_hand=-gone, reserved=-line.quantity)
            # Freed units are promised again from the next batch on, when they are committed.
        version = self._version_after(known.order_id, known.version)
        settled = replace(known, state=state, version=version)
        self._keep(settled)
        kind = StockCommitted if state == "committed" else StockReleased
        fact = Fact(known.order_id, settled.version, kind(known.order_id, known.lines))
        return Done((fact,))

    def _version_after(self, order_id: str, version: int) -> int:
        """An order and a SKU that are called alike are one aggregate, and share its versions."""
        return 1 + max(version, self._versions.get(order_id, 0))

    def _keep(self, reservation: Reservation) -> None:
        order_id = reservation.order_id
        known = order_id in self._known and order_id not in self.added
        (self.changed if known else self.added)[order_id] = reservation
        self._known[order_id] = reservation

    def _move(self, sku: str, *, on_hand: int = 0, reserved: int = 0) -> None:
        sofar = self.changes.get(sku, Change())
        self.changes[sku] = Change(sofar.on_hand + on_hand, sofar.reserved + reserved)


async def deal_with_orders(
    batch: Sequence[Message], transaction: Transaction, *, currency: str = CURRENCY_DEFAULT
) -> Sequence[Outcome]:
    """Reserve, commit and release for a batch, in arrival order: five statements, however long."""
    store = Store(transaction.connection)
    order_ids = {message.envelope.aggregate_id for message in batch}
    known = await store.reservations(order_ids)
    skus = {line.sku for each in known.values() if each.state == "reserved" for line in each.lines}
    for message in batch:
        if isinstance(message.data, OrderCreated):
            skus |= {item.sku for item in message.data.items or ()}
    ledger = Ledger(known, await store.shelves(skus | order_ids), currency)
    outcomes = [ledger.deal_with(m.envelope.aggregate_id, m.data) for m in batch]
    if ledger.added:
        await store.add(list(ledger.added.values()))
    if ledger.changed:
        await store.change(list(ledger.changed.values()))
    if ledger.changes:
        await store.move(ledger.changes)
    return outcomes


def adjust(
    shelf: Shelf, on_hand: int, reason: str, told_of_order: int
) -> tuple[Shelf, Fact | None]:
    """Set what is on hand; no fact when nothing changes. The caller has checked the bounds.

    `told_of_order` is the last version of an order that is called like the SKU: they share them.
    """
    if on_hand == shelf.on_hand:
        return shelf, None
    version = 1 + max(shelf.version, told_of_order)
    adjusted = replace(shelf, on_hand=on_hand, version=version)
    data = StockAdjusted(shelf.sku, on_hand - shelf.on_hand, reason)
    return adjusted, Fact(shelf.sku, adjusted.version, data)
