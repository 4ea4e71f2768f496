"""Orders over HTTP: exact money in every currency, many callers at once, and following an order."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from http_calls import JSON, an_order, send
from ironcart.events import AMOUNT_MINOR_UNITS_MAX, CURRENCIES, QUANTITY_MAX
from ironcart.services.orders.api import COMMENT_EVERY_S
from ironcart.toolkit.envelope import encode_json
from shopping import SOON_S, Shop, System, until

CALLERS = 100
STATUSES = ("pending", "reserved", "confirmed", "rejected", "cancelling", "cancelled")
NAMES = st.text("ABCxyz019._-", min_size=1, max_size=64)
PAYMENT_METHODS = st.text("abcxyzABC019_", min_size=1, max_size=255)
# Each comes from a stream of its own: audit may have the last before the others.
AUDITED = ("OrderCreated", "StockReserved", "PaymentSucceeded", "OrderConfirmed")


def exact(body: bytes) -> Any:
    """Decode with money as it was written: 10 and 10.00 are told apart."""
    return json.loads(body, parse_float=Decimal, parse_int=Decimal)


def written(units: int, currency: str) -> Decimal:
    return Decimal(units).scaleb(-CURRENCIES[currency])


def same(found: Decimal, units: int, currency: str) -> bool:
    return str(found) == str(written(units, currency))


async def read(system: System, service: str, path: str) -> Any:
    reply = await send(system, "GET", path, service=service)
    assert reply.status == 200, reply.body
    return exact(reply.body)


# --- money ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("currency", CURRENCIES)
@pytest.mark.parametrize(
    ("units", "quantity"), [(1, 1), (10, 1), (1999, 3), (AMOUNT_MINOR_UNITS_MAX, 1)]
)
async def test_an_amount_is_the_same_to_the_last_digit_wherever_it_is_read(
    system: System, shop: Shop, currency: str, units: int, quantity: int
) -> None:
    total = units * quantity
    line = {
        "sku": await shop.stocked(),
        "quantity": quantity,
        "unit_price": written(units, currency),
    }
    body = an_order(currency=currency, items=[line]) | {"amount": written(total, currency)}
    reply = await send(system, "POST", "/orders", encode_json(body))
    assert reply.status == 202, reply.body
    accepted = exact(reply.body)
    assert same(accepted["amount"], total, currency)
    order_id = accepted["order_id"]
    assert (await shop.ended(order_id))["status"] == "confirmed"

    kept = await read(system, "orders", f"/orders/{order_id}")
    assert same(kept["amount"], total, currency)
    assert same(kept["items"][0]["unit_price"], units, currency)
    assert kept["currency"] == currency
    payment = await read(system, "payments", f"/payments/{order_id}")
    assert same(payment["amount"], total, currency)
    charge = await shop.charge(order_id)
    assert charge["amount"] == charge["captured"] == total
    assert charge["currency"].upper() == currency

    await until(lambda: _is_audited(shop, order_id))
    trail = (await read(system, "audit", f"/audit/{order_id}"))["items"]
    told = {item["type"]: item["event"]["data"] for item in trail}
    for kind in AUDITED:
        assert same(told[kind]["amount"], total, currency), kind
        assert told[kind]["currency"] == currency, kind
    assert same(told["OrderCreated"]["items"][0]["unit_price"], units, currency)


async def _is_audited(shop: Shop, order_id: str) -> bool:
    return set(AUDITED) <= set(await shop.audited(order_id))


@pytest.mark.parametrize(
    ("currency", "price"),
    [
        *(("JPY", price) for price in ("10.5", "0.1", "100000000", "1e1", "10.01")),
        *(("EUR", price) for price in ("0.001", "19.999", "1000000", "1E2", "-0.01", "0.0000001")),
        ("EUR", "1" * 400),
        ("EUR", "0." + "9" * 400),
        ("EUR", "1e999999999"),
        ("EUR", "-1"),
        ("EUR", '"19.99"'),
        ("EUR", "null"),
    ],
)
async def test_a_price_that_its_currency_cannot_hold_is_refused(
    system: System, currency: str, price: str
) -> None:
    line = f'{{"sku":"SKU-1","quantity":1,"unit_price":{price}}}'
    body = f'{{"customer_id":"C-1","currency":"{currency}","items":[{line}]}}'
    reply = await send(system, "POST", "/orders", body.encode())
    assert (reply.status, reply.pointers()) == (400, ["/items/0/unit_price"])


@pytest.mark.parametrize("price", ["10", "10.0", "10.00000"])
async def test_an_order_in_yen_is_answered_in_whole_yen(system: System, price: str) -> None:
    line = f'{{"sku":"SKU-1","quantity":1,"unit_price":{price}}}'
    body = f'{{"customer_id":"C-1","currency":"JPY","items":[{line}],"amount":{price}}}'
    reply = await send(system, "POST", "/orders", body.encode())
    assert reply.status == 202
    assert b'"amount":10,' in reply.body


@st.composite
def valid_orders(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """An order that must be taken, and what it comes to in minor units."""
    currency = draw(st.sampled_from(sorted(CURRENCIES)))
    lines, total = [], 0
    for _ in range(draw(st.integers(1, 6))):
        quantity = draw(st.integers(1, QUANTITY_MAX))
        most = (AMOUNT_MINOR_UNITS_MAX - total) // quantity
        units = draw(st.integers(0 if total else 1, most)) if most else 0
        if not units and not total:
            quantity, units = 1, 1
        total += units * quantity
        price = written(units, currency)
        lines.append({"sku": draw(NAMES), "quantity": quantity, "unit_price": price})
    optional = {
        "amount": st.just(written(total, currency)),
        "email": st.sampled_from(["a@b.example", "o'hara+shop@mail.shop.example", "é@b.example"]),
        "name": st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1),
        "payment_method": PAYMENT_METHODS,
    }
    body = {
        "customer_id": draw(NAMES),
        "currency": currency,
        "items": lines,
        **draw(st.fixed_dictionaries({}, optional=optional)),
    }
    return body, total


@given(valid=valid_orders())
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_whatever_is_valid_is_accepted_and_kept_as_it_was_sent(
    system: System, valid: tuple[dict[str, Any], int]
) -> None:
    body, total = valid
    reply = await send(system, "POST", "/orders", encode_json(body))
    assert reply.status == 202, reply.body
    assert same(exact(reply.body)["amount"], total, body["currency"])
    kept = await read(system, "orders", reply.headers["Location"])
    assert kept["items"] == body["items"]
    assert kept["customer_id"] == body["customer_id"]


# --- many at once --------------------------------------------------------------------------------


async def test_many_callers_with_one_key_have_one_order(system: System, shop: Shop) -> None:
    key, body = secrets.token_hex(8), an_order()
    ask = (shop.ask("POST", "orders", "/orders", body, Idempotency_Key=key) for _ in range(CALLERS))
    replies = await asyncio.gather(*ask)
    assert {status for status, _ in replies} == {202}
    assert len({answer["order_id"] for _, answer in replies}) == 1


async def test_many_callers_without_keys_each_find_their_own_order_at_once(shop: Shop) -> None:
    async def place_and_look(amount: int) -> str:
        order_id = await shop.place(sku, items=[{"sku": sku, "quantity": 1, "unit_price": amount}])
        found = await shop.order(order_id)
        assert (found["order_id"], found["amount"]) == (order_id, amount)
        return order_id

    sku = await shop.stocked()
    placed = await asyncio.gather(*(place_and_look(amount) for amount in range(1, CALLERS + 1)))
    assert len(set(placed)) == CALLERS


async def test_a_page_and_its_cursors_show_every_order_once_newest_first(shop: Shop) -> None:
    customer_id, sku = f"C-{secrets.token_hex(6)}", await shop.stocked()
    placed = [await shop.place(sku, customer_id=customer_id) for _ in range(7)]
    found: list[str] = []
    path = f"/orders?customer_id={customer_id}&limit=3"
    page = await shop.get("orders", path)
    found += [each["order_id"] for each in page["items"]]
    while page["next_cursor"]:
        page = await shop.get("orders", f"{path}&cursor={page['next_cursor']}")
        found += [each["order_id"] for each in page["items"]]
    assert found == placed[::-1]
    for status in STATUSES:
        page = await shop.get("orders", f"/orders?customer_id={customer_id}&status={status}")
        assert {each["status"] for each in page["items"]} <= {status}


# --- waiting and following -----------------------------------------------------------------------


async def test_an_order_that_ends_in_time_is_shown_as_it_ended(system: System, shop: Shop) -> None:
    body = an_order(items=[{"sku": await shop.stocked(), "quantity": 1, "unit_price": 1}])
    reply = await send(system, "POST", "/orders", body, Prefer="wait=99")
    assert reply.status == 202
    assert reply.json["status"] == "confirmed"
    assert reply.json == await shop.get("orders", reply.headers["Location"])


@contextlib.contextmanager
def held(system: System, service: str) -> Iterator[None]:
    """Hold a service still, so that an order does not get past it."""
    (pid,) = system.run["services"][service]["pids"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def following(
    system: System, order_id: str, **headers: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SOON_S)) as session,
        session.get(f"{system.url('orders')}/orders/{order_id}/events", headers=named) as answer,
    ):
        yield answer


async def versions(system: System, order_id: str, **headers: str) -> list[int]:
    async with following(system, order_id, **headers) as answer:
        told = (await answer.read()).decode()
    return [int(line[4:]) for line in told.splitlines() if line.startswith("id: ")]


async def test_an_order_that_does_not_move_is_answered_in_time_and_its_followers_are_kept(
    system: System, shop: Shop
) -> None:
    sku = await shop.stocked()
    body = an_order(items=[{"sku": sku, "quantity": 1, "unit_price": 1}])
    with held(system, "inventory"):
        begun = time.monotonic()
        reply = await send(system, "POST", "/orders", body, Prefer="wait=1")
        assert (reply.status, reply.json["status"]) == (202, "pending")
        assert 1 <= time.monotonic() - begun < 15
        order_id = reply.json["order_id"]
        async with following(system, order_id) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert answer.headers["Cache-Control"] == "no-store"
            told = answer.content
            first = [(await told.readline()).decode().strip() for _ in range(4)]
            assert first[:2] == ["id: 1", "event: OrderCreated"]
            assert json.loads(first[2].removeprefix("data: "))["status"] == "pending"
            async with asyncio.timeout(2 * COMMENT_EVERY_S):
                assert (await told.readline()).startswith(b":")
    assert (await shop.ended(order_id))["status"] == "confirmed"


async def test_an_order_is_followed_to_its_end_and_resumed_where_it_was_left(
    system: System, shop: Shop
) -> None:
    order_id = await shop.place(await shop.stocked())
    async with following(system, order_id) as answer:
        events = (await answer.read()).decode().strip().split("\n\n")
    shown = [dict(line.split(": ", 1) for line in each.splitlines()) for each in events]
    assert [each["id"] for each in shown] == [str(n) for n in range(1, len(shown) + 1)]
    assert (shown[0]["event"], shown[-1]["event"]) == ("OrderCreated", "OrderConfirmed")
    assert json.loads(shown[-1]["data"])["status"] == "confirmed"
    every = await versions(system, order_id)
    assert await versions(system, order_id, Last_Event_ID="1") == every[1:]
    assert await versions(system, order_id, Last_Event_ID=str(every[-1])) == []
    assert await versions(system, order_id, Last_Event_ID="999999999") == []


@pytest.mark.parametrize("last", ["garbage", "-1", "1.5", "9" * 30, "0", "é", "1;2"])
async def test_a_last_event_that_was_never_told_means_all_of_them(
    system: System, shop: Shop, last: str
) -> None:
    order_id = await shop.place("SKU-NEVER-STOCKED")
    await shop.ended(order_id)
    every = await versions(system, order_id)
    assert every
    assert await versions(system, order_id, Last_Event_ID=last) == every


async def test_head_of_a_stream_answers_at_once_and_streams_nothing(
    system: System, shop: Shop
) -> None:
    order_id = await shop.place("SKU-NEVER-STOCKED")
    reply = await send(system, "HEAD", f"/orders/{order_id}/events")
    assert (reply.status, reply.kind, reply.body) == (200, "text/event-stream", b"")
    assert reply.headers["Cache-Control"] == "no-store"


async def test_what_has_ended_cannot_be_cancelled_and_a_repeated_cancel_is_the_same(
    system: System, shop: Shop
) -> None:
    sku = await shop.stocked()
    order_id = await shop.place(sku)
    await shop.ended(order_id)
    assert (await send(system, "POST", f"/orders/{order_id}/cancel")).status == 409
    with held(system, "inventory"):
        order_id = await shop.place(sku)
        first = await send(system, "POST", f"/orders/{order_id}/cancel", b"not even JSON", **JSON)
        again = await send(system, "POST", f"/orders/{order_id}/cancel")
        assert (first.status, again.status) == (202, 202)
        assert first.json["status"] in ("cancelling", "cancelled")
    assert (await shop.ended(order_id))["status"] == "cancelled"
