"""Move orders on as facts arrive. Above `advance` everything is pure."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ironcart.events import (
    CURRENCY_DEFAULT,
    Item,
    OrderCancellationRequested,
    OrderCreated,
    PaymentFailed,
    StockRejected,
    StockReserved,
    minor_units,
    money,
)
from ironcart.services.orders.handlers.table import (
    CONTRADICTIONS,
    STATUS,
    TABLE,
    TERMINAL,
    UNHEARD_OF,
    Cancel,
    says,
)
from ironcart.services.orders.store import Order, Store
from ironcart.toolkit.database import Transaction
from ironcart.toolkit.envelope import encode_json, event_id
from ironcart.toolkit.history import History, Recorded
from ironcart.toolkit.loop import Message
from ironcart.toolkit.outcomes import Done, Fact, Outcome, Park

ELSEWHERE = "elsewhere"
OUT_OF_STOCK, PAYMENT_DECLINED, LATE_CHARGE = "out_of_stock", "payment_declined", "late_charge"
EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Told:
    """Whom to tell once a batch is committed: watchers of these orders, and the metrics."""

    changed: Callable[[Collection[str]], None]
    finished: Callable[[Sequence[tuple[str, float]]], None]
    contradiction: Callable[[str, str, str], None]
    conflict: Callable[[str, str], None]


def step(order: Order, event: Any, reason: str | None = None) -> tuple[Order, Fact | None]:
    """Move one order on by one event; the fact is what that has to be told as, if anything."""
    after = TABLE[order.state, type(event)]
    if after == order.state:
        return order, None
    status = None if order.status is None else STATUS[after]
    moved = replace(order, state=after, status=status, reason=_reason(order, after, event, reason))
    kind = says(order.state, after)
    if kind is None or order.status is None:
        return moved, None
    moved = replace(moved, version=order.version + 1)
    by = event.by if isinstance(event, Cancel) else None
    return moved, Fact(order.order_id, moved.version, _data(kind, moved, by))


def begin(early: Order | None, created: OrderCreated, trace_id: str, currency: str) -> Order:
    """Make the row of an order that somebody else has taken, in the light of early facts."""
    state = UNHEARD_OF if early is None else early.state
    after = TABLE[state, OrderCreated]
    used = created.currency or currency
    return Order(
        order_id=created.order_id,
        caller=caller_of(created),
        customer_id=created.customer_id,
        state=after,
        status=STATUS[after],
        amount_minor=minor_units(created.amount, used),
        currency=used,
        items=encode_json(created.items or ()),
        payment_method=created.payment_method,
        contact=created.contact,
        reason=None if early is None else early.reason,
        version=1,
        trace_id=trace_id,
    )


def caller_of(created: OrderCreated) -> str:
    """Who placed an order, as far as it is told."""
    asked = None if created.request is None else created.request.caller
    return created.placed_by or asked or ELSEWHERE


def conflicts(order: Order, event: OrderCreated | StockReserved, currency: str) -> bool:
    """Whether an event speaks of another order under this order's id."""
    used = event.currency or currency
    if (event.customer_id, used) != (order.customer_id, order.currency):
        return True
    if minor_units(event.amount, used) != order.amount_minor:
        return True
    if not isinstance(event, OrderCreated):
        return False
    kept = msgspec.json.decode(order.items or b"[]", type=tuple[Item, ...])
    return kept != (event.items or ())


def _reason(order: Order, after: str, event: Any, given: str | None) -> str | None:
    match event:
        case Cancel():
            return given
        case StockRejected():
            return OUT_OF_STOCK
        case PaymentFailed() if after != "cancelled_void":
            return PAYMENT_DECLINED
    if after.endswith("_late"):
        return LATE_CHARGE
    return order.reason or ("voided" if after.startswith("cancelled") else None)


def _data(kind: type[Struct], order: Order, by: str | None = None) -> Struct:
    if kind is OrderCancellationRequested:
        ours = order.reason in (LATE_CHARGE, EXPIRED)
        who = "orders" if ours else (by or order.caller or ELSEWHERE)
        return OrderCancellationRequested(order.order_id, who, order.reason or "")
    assert order.amount_minor is not None
    assert order.currency is not None
    return kind(
        order_id=order.order_id,
        customer_id=order.customer_id,
        amount=money(order.amount_minor, order.currency),
        currency=order.currency,
        reason=order.reason,
        contact=order.contact,
    )


@dataclass(slots=True)
class _Batch:
    """One batch's worth of decisions."""

    known: dict[str, Order]
    currency: str
    added: dict[str, Order] = field(default_factory=dict)
    completed: dict[str, Order] = field(default_factory=dict)
    moved: dict[str, Order] = field(default_factory=dict)
    adopted: list[Message] = field(default_factory=list)
    ended: list[Order] = field(default_factory=list)
    contradictions: list[tuple[str, str, str]] = field(default_factory=list)
    conflicting: list[tuple[str, str]] = field(default_factory=list)

    def deal_with(self, message: Message) -> Outcome:
        """Decide one event; remembers what it does to the rows."""
        order_id, event = message.envelope.aggregate_id, message.data
        order = self.known.get(order_id)
        if isinstance(event, OrderCreated) and (order is None or order.status is None):
            return self._adopt(order, message)
        if order is None:
            order = _unheard_of(order_id)
        if (order.state, type(event)) in CONTRADICTIONS:
            self.contradictions.append((order_id, order.state, type(event).__name__))
        told_whole = isinstance(event, OrderCreated | StockReserved) and order.status is not None
        if told_whole and conflicts(order, event, self.currency):
            self.conflicting.append((order_id, type(event).__name__))
        after, fact = step(order, event)
        if after is not order:
            self._keep(after)
        return Done() if fact is None else Done((fact,))

    def _adopt(self, early: Order | None, message: Message) -> Outcome:
        try:
            order = begin(early, message.data, message.envelope.trace_id, self.currency)
        except ValueError as error:
            return Park(str(error))
        self.adopted.append(message)
        if kind := says(UNHEARD_OF, order.state):
            order = replace(order, version=2)
            self._keep(order, completes=True)
            return Done((Fact(order.order_id, 2, _data(kind, order)),))
        self._keep(order, completes=True)
        return Done()

    def _keep(self, order: Order, *, completes: bool = False) -> None:
        order_id = order.order_id
        before = self.known.get(order_id)
        if order.status in TERMINAL and (before is None or before.status not in TERMINAL):
            self.ended.append(order)
        if order_id in self.added or order_id not in self.known:
            self.added[order_id] = order
        elif completes or order_id in self.completed:
            self.moved.pop(order_id, None)  # Early facts of this very batch are part of it now.
            self.completed[order_id] = order
        else:
            self.moved[order_id] = order
        self.known[order_id] = order


def _unheard_of(order_id: str) -> Order:
    return Order(
        order_id=order_id,
        caller=None,
        customer_id=None,
        state=UNHEARD_OF,
        status=None,
        amount_minor=None,
        currency=None,
        items=None,
        payment_method=None,
        contact=None,
        reason=None,
        version=0,
        trace_id=None,
    )


async def advance(
    batch: Sequence[Message],
    transaction: Transaction,
    *,
    history: History,
    told: Told,
    currency: str = CURRENCY_DEFAULT,
) -> Sequence[Outcome]:
    """Deal with facts about orders, in arrival order: three statements, however many."""
    store = Store(transaction.connection)
    decided = _Batch(await store.lock({m.envelope.aggregate_id for m in batch}), currency)
    outcomes = [decided.deal_with(message) for message in batch]
    if decided.added:
        await store.add(list(decided.added.values()))
    if decided.completed:
        await store.complete(list(decided.completed.values()))
    aged = await store.move(list(decided.moved.values())) if decided.moved else []
    if decided.adopted:
        recorded = [_as_recorded(message) for message in decided.adopted]
        seqs = [message.delivery.stream_seq for message in decided.adopted]
        await history.adopt(transaction.connection, recorded, seqs)
    ages_s = dict(aged)
    ended = [(order.status or "", ages_s.get(order.order_id, 0.0)) for order in decided.ended]
    rows = {**decided.added, **decided.completed, **decided.moved}
    transaction.after_commit.append(partial(told.changed, list(rows)))
    transaction.after_commit.append(partial(told.finished, ended))
    for order_id, state, event in decided.contradictions:
        transaction.after_commit.append(partial(told.contradiction, order_id, state, event))
    for order_id, event in decided.conflicting:
        transaction.after_commit.append(partial(told.conflict, order_id, event))
    return outcomes


async def adopt(
    batch: Sequence[Message],
    transaction: Transaction,
    *,
    history: History,
    told: Told,
    currency: str,
) -> Sequence[Outcome]:
    """Look through our own OrderCreated for orders that we do not know, and take those on.

    The first that comes under an id stands; another one is told as a conflict.
    """
    ours = await Store(transaction.connection).heard_of({m.envelope.aggregate_id for m in batch})
    news = [m for m in batch if m.envelope.aggregate_id not in ours or not _is_own(m, history)]
    if not news:
        return [Done()] * len(batch)
    dealt = await advance(news, transaction, history=history, told=told, currency=currency)
    by_key = {message.key: outcome for message, outcome in zip(news, dealt, strict=True)}
    return [by_key.get(message.key, Done()) for message in batch]


def _is_own(message: Message, history: History) -> bool:
    return message.key == event_id(history.owner, message.envelope.aggregate_id, 1)


def _as_recorded(message: Message) -> Recorded:
    envelope = message.envelope
    return Recorded(
        message.key,
        envelope.aggregate_id,
        1,
        envelope.type,
        message.delivery.subject,
        message.cause.context,
        message.delivery.body,
    )
