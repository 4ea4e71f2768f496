"""The state tables of three services, read off their code: what each event does to each state."""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

from msgspec.structs import replace

from ironcart import events
from ironcart.events import kinds_of
from ironcart.services.inventory import app as inventory_app
from ironcart.services.inventory import handlers as inventory
from ironcart.services.inventory.store import Reservation, Shelf
from ironcart.services.orders import app as orders_app
from ironcart.services.orders.handlers import advance as orders
from ironcart.services.orders.handlers import table as orders_table
from ironcart.services.orders.store import Order
from ironcart.services.payments import app as payments_app
from ironcart.services.payments import handlers as payments
from ironcart.services.payments.gateway import (
    Canceled,
    Declined,
    OperatorRefunded,
    Refunded,
    Succeeded,
)
from ironcart.services.payments.handlers.refunds import allow
from ironcart.services.payments.handlers.take import _Batch as _PaymentsBatch
from ironcart.services.payments.handlers.take import begin
from ironcart.services.payments.store import Payment
from ironcart.toolkit.outcomes import Done, Outcome, Retry
from ironcart.toolkit.topology import Durable
from models.messages import ORDER, message

ORDERS, INVENTORY, PAYMENTS = "orders", "inventory", "payments"
CANCEL, REFUND = "Cancel", "OperatorRefundAsked"
AMOUNT = Decimal("0.02")
MONEY: dict[str, Any] = {"order_id": ORDER, "amount": AMOUNT, "currency": "EUR"}
WHO: dict[str, Any] = {**MONEY, "customer_id": "C-1"}
ITEM = events.Item("A", 2, Decimal("0.01"))
FACTS: Mapping[str, Any] = {
    type(fact).__name__: fact
    for fact in (
        events.OrderCreated(**WHO, items=(ITEM,)),
        events.OrderConfirmed(**WHO),
        events.OrderRejected(**WHO, reason="r"),
        events.OrderCancelled(**WHO, reason="r"),
        events.OrderCancellationRequested(ORDER, "customer", "customer"),
        events.StockReserved(**WHO, items=(ITEM,)),
        events.StockRejected(ORDER, ()),
        events.PaymentSucceeded(**MONEY, reference="pi_1"),
        events.PaymentFailed(**MONEY, reference="pi_1", decline_code="no"),
        events.PaymentVoided(ORDER, "pi_1"),
        events.PaymentRefunded(**MONEY, reference="pi_1"),
        events.RefundIssued(**MONEY, reference="pi_1"),
    )
}
# What the gateway may say, each as a definite answer.
REPLIES: Mapping[str, Any] = {
    type(reply).__name__: reply
    for reply in (
        Succeeded(),
        Declined("no"),
        Canceled(),
        Refunded(),
        OperatorRefunded(1, None),
    )
}


class Effect(NamedTuple):
    """What an event may do: the state it leads to, and the facts that say so."""

    state: str
    says: tuple[str, ...] = ()


class Entry(NamedTuple):
    """A place in a table."""

    service: str
    state: str
    event: str


# Every effect an entry may have; none when the event has to come again.
Tables = Mapping[Entry, tuple[Effect, ...]]


def _says(outcome: Outcome) -> tuple[str, ...]:
    assert isinstance(outcome, Done)
    return tuple(type(fact.data).__name__ for fact in outcome.emit)


def _order(state: str) -> Order:
    blank = orders._unheard_of(ORDER)
    if state not in orders_table.STATUS:
        return replace(blank, state=state)
    filled = orders.begin(None, FACTS["OrderCreated"], "t", "EUR")
    return replace(filled, state=state, status=orders_table.STATUS[state])


def _orders(state: str, event: str) -> tuple[Effect, ...]:
    row = _order(state)
    if event == CANCEL:
        if row.status is None or row.status in orders_table.TERMINAL:
            return (Effect(state),)
        after, fact = orders.step(row, orders_table.Cancel(), "customer")
        return (Effect(after.state, () if fact is None else (type(fact.data).__name__,)),)
    known = {} if state == orders_table.UNHEARD_OF else {ORDER: row}
    batch = orders._Batch(known, "EUR")
    said = _says(batch.deal_with(message(FACTS[event])))
    return (Effect((batch.known.get(ORDER) or row).state, said),)


def _inventory(state: str, event: str) -> tuple[Effect, ...]:
    line = events.Line("A", 2)
    known = {} if state == "none" else {ORDER: Reservation(ORDER, state, (line,), 1)}
    effects = []
    for on_hand in (5, 2):  # Enough for one more, or not.
        ledger = inventory.Ledger(known, {"A": Shelf("A", on_hand, 2, 0)})
        outcome = ledger.deal_with(ORDER, FACTS[event])
        if isinstance(outcome, Retry):
            return ()
        row = {**known, **ledger.added, **ledger.changed}.get(ORDER)
        effects.append(Effect("none" if row is None else row.state, _says(outcome)))
    return tuple(dict.fromkeys(effects))


def _payment(state: str) -> Payment:
    row = begin(message(FACTS["StockReserved"]), state)
    intent_id = None if state in ("none", "charging") else "pi_1"
    refund: dict[str, Any] = (
        {"refund_id": "r", "refunding_minor": 1} if state.startswith("op_") else {}
    )
    return replace(row, amount_minor=2, currency="EUR", intent_id=intent_id, **refund)


def _payments(state: str, event: str) -> tuple[Effect, ...]:
    row = _payment(state)
    if event in FACTS:
        return _payments_hears(row, FACTS[event])
    if event == REFUND:
        units = allow(row, None)
        if not isinstance(units, int):
            return (Effect(state),)
        return (Effect(payments.step(row, payments.OperatorRefundAsked("r", units))[0].state),)
    after, fact = payments.step(row, REPLIES[event])
    return (Effect(after.state, () if fact is None else (type(fact.data).__name__,)),)


def _payments_hears(row: Payment, fact: Any) -> tuple[Effect, ...]:
    effects = []
    for held in (set[str](), {ORDER}):
        known = {} if row.state == "none" else {ORDER: row}
        batch = _PaymentsBatch(known, held, "EUR", "pm_card_visa")
        said = _says(batch.deal_with(message(fact)))
        effects.append(Effect(batch.known.get(ORDER, row).state, said))
    return tuple(dict.fromkeys(effects))


def _takes(*durables: Durable) -> tuple[str, ...]:
    """The events that a service subscribes to."""
    return tuple(kind.__name__ for each in durables for kind in kinds_of(each).values())


HEARS: Mapping[str, tuple[str, ...]] = {
    ORDERS: _takes(orders_app.ORDERS, orders_app.INVENTORY, orders_app.PAYMENTS),
    INVENTORY: _takes(inventory_app.ORDERS),
    PAYMENTS: _takes(payments_app.ORDERS, payments_app.INVENTORY),
}
UNHEARD_OF: Mapping[str, str] = {
    ORDERS: orders_table.UNHEARD_OF,
    INVENTORY: "none",
    PAYMENTS: "none",
}


@cache
def tables() -> Tables:
    """Every entry of the three tables, as the code decides it."""
    return dict(_entries())


def _entries() -> Iterator[tuple[Entry, tuple[Effect, ...]]]:
    for state in {state for state, _ in orders_table.TABLE}:
        for event in (*HEARS[ORDERS], CANCEL):
            yield Entry(ORDERS, state, event), _orders(state, event)
    for state in {state for state, _ in inventory.TABLE}:
        for event in HEARS[INVENTORY]:
            yield Entry(INVENTORY, state, event), _inventory(state, event)
    for state in {state for state, _ in payments.TABLE}:
        for event in (*HEARS[PAYMENTS], REFUND, *REPLIES):
            yield Entry(PAYMENTS, state, event), _payments(state, event)
