"""What becomes of an order: confirmed, rejected, cancelled; every end with its money and stock."""

import asyncio
import json
import re
import secrets

import aiohttp

from shopping import Shop, order, until

CONFIRMED_TRAIL = {
    "OrderCreated",
    "StockReserved",
    "PaymentSucceeded",
    "OrderConfirmed",
    "StockCommitted",
    "NotificationSent",
}


async def test_an_order_is_reserved_charged_confirmed_mailed_and_audited(shop: Shop) -> None:
    sku = await shop.stocked(10)

    order_id = await shop.place(sku, 2)
    ended = await shop.ended(order_id)

    assert ended["status"] == "confirmed"
    charge = await shop.charge(order_id)
    assert (charge["captured"], charge["refunded"], charge["currency"]) == (3998, 0, "eur")
    await until(lambda: _trail(shop, order_id, CONFIRMED_TRAIL))
    stock = await shop.get("inventory", f"/stock/{sku}")
    assert stock == {"sku": sku, "on_hand": 8, "reserved": 0, "available": 8}
    mail = await shop.get("sandbox", f"/sandbox/mail?order_id={order_id}")
    assert [each["to"] for each in mail] == ["someone@shop.example"]
    sent = await shop.get("notifications", f"/notifications?order_id={order_id}")
    assert [each["state"] for each in sent["items"]] == ["sent"]
    payment = await shop.get("payments", f"/payments/{order_id}")
    assert (payment["status"], payment["amount"]) == ("succeeded", 39.98)


async def test_an_order_for_more_than_the_stock_is_rejected_and_nothing_is_charged(
    shop: Shop,
) -> None:
    sku = await shop.stocked(3)

    ended = await shop.ended(await shop.place(sku, 4))

    assert (ended["status"], ended["reason"]) == ("rejected", "out_of_stock")
    assert await shop.charge(ended["order_id"]) is None
    assert (await shop.get("inventory", f"/stock/{sku}"))["available"] == 3


async def test_a_declined_card_rejects_the_order_and_gives_the_stock_back(shop: Shop) -> None:
    sku = await shop.stocked(3)

    ended = await shop.ended(await shop.place(sku, 2, payment_method="pm_card_chargeDeclined"))

    assert (ended["status"], ended["reason"]) == ("rejected", "payment_declined")
    charge = await shop.charge(ended["order_id"])
    assert (charge["captured"], charge["status"]) == (0, "canceled")
    await until(lambda: _available(shop, sku, 3))


async def test_a_cancel_before_the_charge_leaves_no_charge_and_no_reservation(shop: Shop) -> None:
    sku = await shop.stocked(3)
    await shop.fault(mode="down", seconds=60)
    order_id = await shop.place(sku, 2)
    await until(lambda: _available(shop, sku, 1))

    status, body = await shop.ask("POST", "orders", f"/orders/{order_id}/cancel")

    assert (status, body["order_id"]) == (202, order_id)
    await shop.heal()
    ended = await shop.ended(order_id, 60)
    assert (ended["status"], ended["reason"]) == ("cancelled", "customer")
    charge = await shop.charge(order_id)
    assert charge is None or charge["captured"] == 0
    await until(lambda: _available(shop, sku, 3))
    again, body = await shop.ask("POST", "orders", f"/orders/{order_id}/cancel")
    assert (again, body["status"]) == (202, "cancelled")


async def test_a_cancel_after_the_charge_sends_the_money_and_the_stock_back(shop: Shop) -> None:
    sku = await shop.stocked(3)
    await shop.fault(mode="slow", delay_s=3, seconds=60)
    order_id = await shop.place(sku, 2)

    async def captured() -> bool:
        charge = await shop.charge(order_id)
        return charge is not None and charge["captured"] == 3998

    await until(captured)
    status, _ = await shop.ask("POST", "orders", f"/orders/{order_id}/cancel")

    assert status == 202
    await shop.heal()
    ended = await shop.ended(order_id)
    assert ended["status"] == "cancelled"
    charge = await shop.charge(order_id)
    assert (charge["captured"], charge["refunded"]) == (3998, 3998)
    await until(lambda: _available(shop, sku, 3))


async def test_a_confirmed_order_cannot_be_cancelled(shop: Shop) -> None:
    sku = await shop.stocked()
    order_id = await shop.place(sku)
    await shop.ended(order_id)

    status, problem = await shop.ask("POST", "orders", f"/orders/{order_id}/cancel")

    assert (status, problem["status"]) == (409, 409)


async def test_the_same_key_is_the_same_order_even_when_a_hundred_come_at_once(shop: Shop) -> None:
    sku, key = await shop.stocked(), secrets.token_hex(8)
    body = order(sku)

    answers = await asyncio.gather(
        *(shop.ask("POST", "orders", "/orders", body, Idempotency_Key=key) for _ in range(100))
    )
    quoted = await shop.ask("POST", "orders", "/orders", body, Idempotency_Key=f'"{key}"')
    other = await shop.ask("POST", "orders", "/orders", order(sku, 2), Idempotency_Key=key)

    assert {status for status, _ in answers} == {202}
    assert len({answer["order_id"] for _, answer in answers}) == 1
    assert quoted == answers[0]
    assert other[0] == 422


async def test_without_a_key_every_post_is_a_new_order(shop: Shop) -> None:
    sku = await shop.stocked()

    assert await shop.place(sku) != await shop.place(sku)


async def test_prefer_wait_answers_with_the_order_as_it_then_stands(shop: Shop) -> None:
    sku = await shop.stocked()

    status, body = await shop.ask("POST", "orders", "/orders", order(sku), Prefer="wait=20")

    assert (status, body["status"]) == (202, "confirmed")


async def test_every_fault_of_a_body_is_pointed_at(shop: Shop) -> None:
    body = (
        b'{"customer_id":"C 1","currency":"XYZ","amount":1e2,'
        b'"items":[{"sku":"A","quantity":0,"unit_price":1.999},{"quantity":1,"unit_price":"NaN"}]}'
    )

    status, problem = await shop.ask("POST", "orders", "/orders", body)

    assert status == 400
    assert {fault["pointer"] for fault in problem["errors"]} == {
        "/amount",
        "/currency",
        "/customer_id",
        "/items/0/quantity",
        "/items/0/unit_price",
        "/items/1/sku",
        "/items/1/unit_price",
    }


async def test_an_amount_that_is_sent_must_agree(shop: Shop) -> None:
    sku = await shop.stocked()

    agreed, _ = await shop.ask("POST", "orders", "/orders", order(sku, 2, amount=39.98))
    wrong, problem = await shop.ask("POST", "orders", "/orders", order(sku, 2, amount=39.97))

    assert (agreed, wrong) == (202, 400)
    assert [fault["pointer"] for fault in problem["errors"]] == ["/amount"]


async def test_what_is_not_an_order_is_refused_in_kind(shop: Shop) -> None:
    async def post(body: bytes, kind: str = "application/json") -> int:
        return (await shop.ask("POST", "orders", "/orders", body, Content_Type=kind))[0]

    assert await post(b"{") == 400
    assert await post(b"[]") == 400
    assert await post(b"\xff") == 400
    assert await post(b"{}", "text/plain") == 415
    assert await post(b" " * 70_000) == 413
    assert (await shop.ask("GET", "orders", "/orders/ORD-nobody"))[0] == 404
    assert (await shop.ask("DELETE", "orders", "/orders"))[0] == 405
    assert (await shop.ask("GET", "orders", "/nowhere"))[0] == 404


async def test_lists_page_through_newest_first(shop: Shop) -> None:
    sku, customer = await shop.stocked(), f"C-{secrets.token_hex(4)}"
    placed = [await shop.place(sku, customer_id=customer) for _ in range(5)]
    found: list[str] = []
    cursor = ""

    while True:
        page = await shop.get("orders", f"/orders?customer_id={customer}&limit=2{cursor}")
        found += [each["order_id"] for each in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert found == placed[::-1]


async def test_server_sent_events_tell_an_order_to_its_end_and_resume(shop: Shop) -> None:
    sku = await shop.stocked()
    order_id = await shop.place(sku)
    url = f"{shop.system.url('orders')}/orders/{order_id}/events"

    async with aiohttp.ClientSession() as session:
        async with session.get(url) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            whole = await answer.text()
        async with session.get(url, headers={"Last-Event-ID": "1"}) as answer:
            rest = await answer.text()

    assert re.findall(r"^id: (\d+)$", whole, re.MULTILINE) == ["1", "2"]
    assert re.findall(r"^event: (\w+)$", whole, re.MULTILINE) == ["OrderCreated", "OrderConfirmed"]
    assert json.loads(re.findall(r"^data: (.*)$", whole, re.MULTILINE)[-1])["status"] == "confirmed"
    assert re.findall(r"^id: (\d+)$", rest, re.MULTILINE) == ["2"]


async def test_stock_cannot_be_put_below_what_is_reserved(shop: Shop) -> None:
    sku = await shop.stocked(5)
    await shop.fault(mode="down", seconds=60)
    order_id = await shop.place(sku, 3)
    await until(lambda: _available(shop, sku, 2))

    below, _ = await shop.ask("PUT", "inventory", f"/stock/{sku}", {"on_hand": 2})
    taken, _ = await shop.ask("POST", "inventory", f"/stock/{sku}/adjustments", {"delta": -3})
    added, stock = await shop.ask("POST", "inventory", f"/stock/{sku}/adjustments", {"delta": 1})

    assert (below, taken, added) == (409, 409, 200)
    assert stock == {"sku": sku, "on_hand": 6, "reserved": 3, "available": 3}
    await shop.heal()
    await shop.ask("POST", "orders", f"/orders/{order_id}/cancel")
    await shop.ended(order_id, 60)


async def _trail(shop: Shop, order_id: str, types: set[str]) -> bool:
    return set(await shop.audited(order_id)) == types


async def _available(shop: Shop, sku: str, units: int) -> bool:
    stock = await shop.get("inventory", f"/stock/{sku}")
    available: int = stock["available"]
    return available == units
