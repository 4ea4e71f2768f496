"""Whatever the order, the batches and the repeats in which facts arrive: one end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import permutations, product
from typing import Any
from uuid import uuid4

import pytest
from msgspec import Raw
from msgspec.structs import replace

from ironcart.events import (
    Item,
    OrderCancellationRequested,
    OrderCancelled,
    OrderConfirmed,
    OrderCreated,
    OrderRejected,
    PaymentFailed,
    PaymentRefunded,
    PaymentSucceeded,
    PaymentVoided,
    RefundIssued,
    StockRejected,
    StockReserved,
)
from ironcart.services.inventory import handlers as inventory
from ironcart.services.inventory.store import Reservation, Shelf
from ironcart.services.orders.handlers import advance as orders
from ironcart.services.orders.handlers.table import STATUS, TABLE, Cancel
from ironcart.services.orders.store import Order
from ironcart.services.payments import handlers as payments
from ironcart.services.payments.gateway import Canceled, Declined, Refunded, Succeeded
from ironcart.services.payments.handlers import take
from ironcart.services.payments.store import Payment
from ironcart.toolkit.broker import Delivery
from ironcart.toolkit.envelope import Envelope
from ironcart.toolkit.history import Cause
from ironcart.toolkit.loop import Message
from ironcart.toolkit.outcomes import Done, Retry
from ironcart.toolkit.telemetry import TraceContext

ORDER = "ORD-1"
AMOUNT = Decimal("20.00")
MONEY: dict[str, Any] = {"order_id": ORDER, "amount": AMOUNT, "currency": "EUR"}
WHO: dict[str, Any] = {"customer_id": "C-1"}
ITEMS = (Item("A", 2, Decimal("10.00")),)
CREATED = OrderCreated(ORDER, "C-1", AMOUNT, "EUR", ITEMS)
RESERVED = StockReserved(ORDER, "C-1", AMOUNT, "EUR", ITEMS)
SHORT = StockRejected(ORDER, ())
PAID = PaymentSucceeded(**MONEY, reference="pi_1")
FAILED = PaymentFailed(**MONEY, reference="pi_1", decline_code="generic_decline")
VOIDED = PaymentVoided(ORDER, "pi_1")
RETURNED = PaymentRefunded(**MONEY, reference="pi_1")
GIVEN_BACK = RefundIssued(**MONEY, reference="pi_1")
CANCEL = OrderCancellationRequested(ORDER, "customer", "customer")


def message(data: Any) -> Message:
    envelope = Envelope(
        id=str(uuid4()),
        type=type(data).__name__,
        aggregate_id=ORDER,
        data=Raw(b"{}"),
        timestamp=datetime(2026, 11, 21, tzinfo=UTC),
        trace_id="t",
    )
    delivery = Delivery("S", 1, "s", b"", {}, 1, 0.0, "")
    return Message(uuid4(), envelope, data, delivery, Cause("t", TraceContext("0" * 32, "1" * 16)))


def schedules(events: Sequence[Any]) -> Iterator[list[list[Message]]]:
    """Every order of every event twice, in one batch, one by one, and in halves."""
    for order in set(permutations([*range(len(events)), *range(len(events))])):
        arrivals = [message(events[at]) for at in order]
        yield [arrivals]
        yield [[each] for each in arrivals]
        yield [arrivals[: len(arrivals) // 2], arrivals[len(arrivals) // 2 :]]


class Orders:
    """The rows of orders and what it said, without a database."""

    def __init__(self) -> None:
        self.rows: dict[str, Order] = {}
        self.said: list[str] = []

    def deliver(self, batch: Iterable[Message]) -> None:
        decided = orders._Batch(dict(self.rows), "EUR")
        for each in batch:
            outcome = decided.deal_with(each)
            assert isinstance(outcome, Done)
            self.said += [type(fact.data).__name__ for fact in outcome.emit]
        self.rows |= decided.added | decided.completed | decided.moved

    def cancel(self) -> None:
        row, fact = orders.step(self.rows[ORDER], Cancel(), "customer")
        self.rows[ORDER] = row
        self.said += [] if fact is None else [type(fact.data).__name__]


ENDS = [
    ([CREATED, RESERVED, PAID], "confirmed", ["OrderConfirmed"]),
    ([CREATED, SHORT], "rejected", ["OrderRejected"]),
    ([CREATED, RESERVED, FAILED], "rejected", ["OrderRejected"]),
    ([CREATED, RESERVED, VOIDED], "cancelled", ["OrderCancelled"]),
    ([CREATED, RESERVED, PAID, GIVEN_BACK], "confirmed", ["OrderConfirmed"]),
]


@pytest.mark.parametrize(("events", "status", "said"), ENDS)
def test_orders_come_to_one_end_in_every_order_of_arrival(
    events: list[Any], status: str, said: list[str]
) -> None:
    for batches in schedules(events):
        shop = Orders()
        for batch in batches:
            shop.deliver(batch)
        row = shop.rows[ORDER]
        assert (row.status, shop.said, row.version) == (status, said, 1 + len(said))


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([RESERVED, VOIDED], ["OrderCancellationRequested", "OrderCancelled"]),
        ([RESERVED, PAID, RETURNED], ["OrderCancellationRequested", "OrderCancelled"]),
        ([SHORT, VOIDED], ["OrderCancellationRequested", "OrderCancelled"]),
    ],
)
def test_a_cancelled_order_comes_to_one_end_in_every_order_of_arrival(
    events: list[Any], said: list[str]
) -> None:
    for batches in schedules(events):
        shop = Orders()
        shop.deliver([message(CREATED)])
        shop.cancel()
        for batch in batches:
            shop.deliver(batch)
        assert (shop.rows[ORDER].status, shop.said) == ("cancelled", said)
        assert shop.rows[ORDER].reason == "customer"


def test_the_table_of_orders_is_total_and_never_leaves_a_known_status_for_an_early_one() -> None:
    states = {state for state, _ in TABLE}
    events = {event for _, event in TABLE}

    assert set(TABLE) == set(product(states, events))
    for (state, _), after in TABLE.items():
        assert not (state in STATUS and after.startswith("early"))


class Shelves:
    """The rows of inventory and what it said, without a database."""

    def __init__(self, on_hand: int) -> None:
        self.shelf = Shelf("A", on_hand, 0, 0)
        self.rows: dict[str, Reservation] = {}
        self.said: list[str] = []

    def deliver(self, batch: Iterable[Message]) -> list[Message]:
        """Deal with a batch; returns what has to be delivered again."""
        ledger = inventory.Ledger(self.rows, {"A": self.shelf})
        again = []
        for each in batch:
            outcome = ledger.deal_with(ORDER, each.data)
            if isinstance(outcome, Retry):
                again.append(each)
            else:
                assert isinstance(outcome, Done)
                self.said += [type(fact.data).__name__ for fact in outcome.emit]
        self.rows |= ledger.added | ledger.changed
        for change in ledger.changes.values():
            self.shelf = replace(
                self.shelf,
                on_hand=self.shelf.on_hand + change.on_hand,
                reserved=self.shelf.reserved + change.reserved,
            )
            assert 0 <= self.shelf.reserved <= self.shelf.on_hand
        return again


@pytest.mark.parametrize(
    ("events", "on_hand", "state", "left"),
    [
        ([CREATED, OrderConfirmed(**MONEY, **WHO)], 5, "committed", (3, 0)),
        ([CREATED, OrderRejected(**MONEY, **WHO, reason="r")], 5, "released", (5, 0)),
        ([CREATED, OrderCancelled(**MONEY, **WHO, reason="r")], 5, "released", (5, 0)),
    ],
)
def test_stock_comes_to_one_end_in_every_order_of_arrival(
    events: list[Any], on_hand: int, state: str, left: tuple[int, int]
) -> None:
    for batches in schedules(events):
        shelves = Shelves(on_hand)
        again: list[Message] = []
        for batch in batches:
            again += shelves.deliver(batch)
        assert shelves.deliver(again) == []
        assert shelves.rows[ORDER].state == state
        assert (shelves.shelf.on_hand, shelves.shelf.reserved) == left
        assert len(shelves.said) == len(set(shelves.said)) == shelves.rows[ORDER].version


def test_the_table_of_inventory_is_total() -> None:
    states = {"none", "reserved", "rejected", "committed", "released"}
    events = {OrderCreated, OrderConfirmed, OrderRejected, OrderCancelled}

    assert set(inventory.TABLE) == set(product(states, events))


class Till:
    """The row of payments and what it said, without a database or a gateway."""

    def __init__(self) -> None:
        self.rows: dict[str, Payment] = {}
        self.said: list[str] = []

    def deliver(self, batch: Iterable[Message], held: bool) -> None:
        decided = take._Batch(dict(self.rows), {ORDER} if held else set(), "EUR", "pm_card_visa")
        for each in batch:
            outcome = decided.deal_with(each)
            assert isinstance(outcome, Done)
            self.said += [type(fact.data).__name__ for fact in outcome.emit]
        self.rows |= decided.added | decided.moved

    def learn(self, *replies: Any) -> None:
        for reply in replies:
            row, fact = payments.learn(self.rows[ORDER], reply)
            self.rows[ORDER] = row
            self.said += [] if fact is None else [type(fact.data).__name__]


@pytest.mark.parametrize("held", [False, True])
def test_an_order_undone_before_its_charge_is_voided_in_every_order_of_arrival(held: bool) -> None:
    for batches in schedules([RESERVED, CANCEL]):
        till = Till()
        for batch in batches:
            till.deliver(batch, held)
        if till.rows[ORDER].state == "voiding":
            till.learn(Canceled())
        assert (till.rows[ORDER].state, till.said) == ("voided", ["PaymentVoided"])


def answers() -> dict[str, Callable[[Till], None]]:
    """What the gateway may say to a charge while a cancellation comes in, and after it."""
    return {
        "the capture wins": lambda till: till.learn(Succeeded(), Refunded()),
        "the cancel wins": lambda till: till.learn(Canceled()),
        "declined, then cancelled": lambda till: till.learn(Declined("x"), Canceled()),
    }


@pytest.mark.parametrize("name", answers())
def test_a_cancel_against_a_charge_in_flight_ends_with_no_money_kept(name: str) -> None:
    till = Till()
    till.deliver([message(RESERVED)], held=False)
    till.deliver([message(CANCEL)], held=True)
    answers()[name](till)

    assert till.rows[ORDER].state in ("voided", "refunded")
    assert "PaymentFailed" not in till.said


def test_the_table_of_payments_is_total() -> None:
    states = {state for state, _ in payments.TABLE}

    assert set(payments.TABLE) == set(product(states, payments.EVENTS))
    assert states > payments.JOBS
