"""Who placed an order is told with it, and known again from what was told."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from msgspec.structs import replace

from ironcart.events import Item, OrderCreated
from ironcart.services.orders.fold import fold_one
from ironcart.services.orders.handlers.accept import Request, prepare
from ironcart.services.orders.handlers.advance import ELSEWHERE, begin, step
from ironcart.services.orders.handlers.check import Draft
from ironcart.services.orders.handlers.table import Cancel
from ironcart.services.orders.store import Order
from ironcart.toolkit.envelope import encode_json, seal
from ironcart.toolkit.history import Cause
from ironcart.toolkit.http import Caller, Scope
from ironcart.toolkit.http.access import ANONYMOUS
from ironcart.toolkit.outcomes import Fact
from ironcart.toolkit.recovery import own_fact
from ironcart.toolkit.telemetry import context

SHOP = Caller("key:shop", Scope.STOREFRONT)
TRACE = context({}, "0" * 32)
DRAFT = Draft("C-1", "EUR", 500, (Item("SKU-1", 1, Decimal("5.00")),), "pm_card_visa", None)


def placed(caller: Caller, key: str | None) -> tuple[Order, OrderCreated]:
    cause = Cause("0" * 32, TRACE)
    request = Request(DRAFT, caller.id, key, cause, caller is not ANONYMOUS)
    prepared = prepare(request, "ORD-1", None)
    assert isinstance(prepared.fact.data, OrderCreated)
    return prepared.order, prepared.fact.data


def rebuilt(created: OrderCreated) -> Order:
    at = datetime.now(UTC)
    _, body = seal("orders", Fact("ORD-1", 1, created), trace_id="0" * 32, causation_id=None, at=at)
    fact = own_fact({"orders.created": OrderCreated}, "orders.created", body, 1)
    assert fact is not None
    found = fold_one(None, fact, "EUR")
    assert found is not None
    return found


@pytest.mark.parametrize("key", [None, "walk-1"])
def test_a_rebuilt_or_adopted_order_is_its_callers(key: str | None) -> None:
    order, created = placed(SHOP, key)

    assert order.caller == created.placed_by == SHOP.id
    assert begin(None, created, "0" * 32, "EUR").caller == SHOP.id
    assert rebuilt(created).caller == SHOP.id


def test_where_nobody_was_asked_who_calls_nothing_is_told_of_it() -> None:
    order, created = placed(ANONYMOUS, None)

    assert order.caller == ANONYMOUS.id
    assert b"placed_by" not in encode_json(created)
    assert begin(None, created, "0" * 32, "EUR").caller == ELSEWHERE


def test_an_older_order_is_that_of_the_caller_of_its_idempotency_key() -> None:
    _, created = placed(SHOP, "walk-1")

    assert rebuilt(replace(created, placed_by=None)).caller == SHOP.id


def test_an_order_is_seen_by_who_placed_it_and_by_operators() -> None:
    assert SHOP.sees("key:shop")
    assert Caller("key:ops", Scope.OPERATOR).sees("key:shop")
    for other in ("key:other", "shop", ELSEWHERE, ANONYMOUS.id, None):
        assert not SHOP.sees(other)


def test_who_asks_for_a_cancellation_is_told() -> None:
    order, _ = placed(SHOP, None)
    for by, expected in ((None, SHOP.id), ("key:ops", "key:ops")):
        _, fact = step(order, Cancel(by), "operator")
        assert fact is not None
        assert fact.data.requested_by == expected
