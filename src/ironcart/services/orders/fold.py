"""What orders' own facts say about its table: how it is put together again from what was told."""

from collections.abc import Sequence

from msgspec.structs import replace

from ironcart.events import (
    CURRENCY_DEFAULT,
    OWNERS,
    OrderCancellationRequested,
    OrderCancelled,
    OrderConfirmed,
    OrderCreated,
    OrderRejected,
    minor_units,
)
from ironcart.services.orders.handlers.accept import remembered
from ironcart.services.orders.handlers.advance import (
    ELSEWHERE,
    LATE_CHARGE,
    PAYMENT_DECLINED,
    begin,
)
from ironcart.services.orders.handlers.table import STATUS
from ironcart.services.orders.store import Order, Store
from ironcart.toolkit.database import Connection
from ironcart.toolkit.recovery import Compared, Memory, OwnFact

Ended = OrderConfirmed | OrderRejected | OrderCancelled


def state_after(before: str, data: OrderCancellationRequested | Ended) -> str:
    """The state that a fact of ours leads to; whether a cancelled order was charged is not told.

    `cancelled_back` is the safe guess: a charge that is found later is payments' to send back.
    """
    match data:
        case OrderConfirmed():
            return "confirmed"
        case OrderRejected(reason=reason):
            return "rejected_pay" if reason == PAYMENT_DECLINED else "rejected_stock"
        case OrderCancelled():
            return "cancelled_back"
        case _ if data.reason == LATE_CHARGE:
            return "rejected_late" if before.startswith("rejected") else "cancelled_late"
    return "cancelling"


def fold_one(order: Order | None, fact: OwnFact, currency: str) -> Order | None:
    """Apply one fact to one row; None when it cannot be told what the order was."""
    data = fact.data
    if isinstance(data, OrderCreated):
        if order is not None and order.status is not None:
            return order
        return begin(order, data, fact.envelope.trace_id, currency)
    if order is None or order.status is None:
        if isinstance(data, OrderCancellationRequested):
            return None
        order = _unseen(fact)
    state = state_after(order.state, data)
    reason = data.reason or None
    return replace(order, state=state, status=STATUS[state], reason=reason, version=fact.version)


def _unseen(fact: OwnFact) -> Order:
    """An order of which only the end is left to us."""
    data: Ended = fact.data
    return Order(
        order_id=data.order_id,
        caller=ELSEWHERE,
        customer_id=data.customer_id,
        state="pending",
        status="pending",
        amount_minor=minor_units(data.amount, data.currency),
        currency=data.currency,
        items=b"[]",
        payment_method=None,
        contact=data.contact,
        reason=None,
        version=0,
        trace_id=fact.envelope.trace_id,
    )


async def fold(facts: Sequence[OwnFact], connection: Connection) -> None:
    """Apply facts, in order, to the table."""
    store = Store(connection)
    known = await store.lock({fact.aggregate_id for fact in facts})
    now = dict(known)
    for fact in facts:
        folded = fold_one(now.get(fact.aggregate_id), fact, CURRENCY_DEFAULT)
        if folded is not None:
            now[fact.aggregate_id] = folded
    changed = [order for order_id, order in now.items() if order != known.get(order_id)]
    early = {order_id for order_id, order in known.items() if order.status is None}
    if added := [order for order in changed if order.order_id not in known]:
        await store.add(added)
    if completed := [order for order in changed if order.order_id in early]:
        await store.complete(completed)
    if moved := [o for o in changed if o.order_id in known and o.order_id not in early]:
        await store.move(moved)
    created = [fact for fact in facts if isinstance(fact.data, OrderCreated)]
    keys = [remembered(fact.data) for fact in created]
    await store.claim([key for key in keys if key is not None])
    await connection.execute(
        "UPDATE orders o SET created_at = u.at"
        " FROM unnest($1::text[], $2::timestamptz[]) AS u(order_id, at)"
        " WHERE o.order_id = u.order_id",
        [fact.aggregate_id for fact in created],
        [fact.envelope.timestamp for fact in created],
    )


# Reserved or not is inventory's to tell, and how a cancelled one was paid payments'. Who placed an
# order is told where authentication was on, and such callers have a colon in their names.
_COMPARED = """
SELECT order_id, CASE WHEN status IN ('pending', 'reserved') THEN 'open' ELSE status END AS status,
       version, customer_id, amount_minor, currency, items, payment_method, contact, reason,
       CASE WHEN caller LIKE '%:%' THEN caller END AS placed_by
FROM {schema}.orders WHERE status IS NOT NULL
"""
STREAM, _KINDS = OWNERS["orders"]
MEMORY = Memory(
    STREAM,
    {subject: kind for kind, subject in _KINDS.items()},
    fold,
    [Compared("orders", _COMPARED)],
    adopts=frozenset({"OrderCreated"}),
)
