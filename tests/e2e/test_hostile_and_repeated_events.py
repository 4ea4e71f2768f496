"""What reaches the streams from elsewhere: foreign producers, repeats and garbage."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from ironcart.events import KINDS, STREAMS
from shopping import Shop, System, until

# Types that somebody besides audit reads; audit parks nothing.
READ = {
    "orders.created": ("orders", "inventory"),
    "orders.cancellation_requested": ("payments",),
    "orders.confirmed": ("inventory", "notifications"),
    "orders.rejected": ("inventory", "notifications"),
    "orders.cancelled": ("inventory", "notifications"),
    "inventory.reserved": ("orders", "payments"),
    "inventory.rejected": ("orders",),
    "payments.succeeded": ("orders",),
    "payments.failed": ("orders",),
    "payments.voided": ("orders",),
    "payments.refunded": ("orders",),
    "payments.refund_issued": ("orders",),
}
MESSAGE_BYTES_MAX = 1_000_000


@pytest.fixture
async def broker(system: System) -> AsyncIterator[Client]:
    """A raw client, as a producer in another language has it."""
    client = await nats.connect(system.run["nats"]["urls"][0])
    yield client
    await client.close()


def foreign(order_id: str, **data: Any) -> dict[str, Any]:
    """Six fields, as a Go producer writes them; the trace id is no trace id of ours."""
    return {
        "id": secrets.token_hex(16),
        "type": "OrderCreated",
        "aggregate_id": order_id,
        "data": {"order_id": order_id, "customer_id": "C-9", "amount": 129.9} | data,
        "timestamp": "2026-11-20T23:14:05.123456789+01:00",
        "trace_id": "abc123",
    }


async def dead_letters(broker: Client) -> int:
    info = await broker.jetstream().stream_info("DEADLETTERS")
    return info.state.messages


async def test_an_order_from_a_raw_client_with_six_fields_is_processed(
    shop: Shop, broker: Client
) -> None:
    order_id = f"GO-{secrets.token_hex(4)}"

    await broker.jetstream().publish("orders.created", json.dumps(foreign(order_id)).encode())

    ended = await shop.ended(order_id)
    assert (ended["status"], ended["amount"], ended["items"]) == ("confirmed", 129.9, [])
    assert (await shop.charge(order_id))["captured"] == 12990


async def test_an_order_from_elsewhere_reserves_its_items(shop: Shop, broker: Client) -> None:
    sku, order_id = await shop.stocked(5), f"GO-{secrets.token_hex(4)}"
    items = [{"sku": sku, "quantity": 1, "unit_price": 64.95}] * 2
    event = foreign(order_id, items=items, currency="USD", something_new=[1, 2])

    await broker.jetstream().publish("orders.created", json.dumps(event).encode())

    assert (await shop.ended(order_id))["status"] == "confirmed"
    assert (await shop.charge(order_id))["currency"] == "usd"

    async def left() -> bool:
        return bool((await shop.get("inventory", f"/stock/{sku}"))["on_hand"] == 3)

    await until(left)


async def test_every_event_published_again_under_a_new_message_id_changes_nothing(
    shop: Shop, broker: Client
) -> None:
    sku = await shop.stocked(100)
    orders = [await shop.place(sku) for _ in range(5)]
    orders.append(await shop.place(sku, payment_method="pm_card_chargeDeclined"))
    orders.append(await shop.place(sku, 1_000))
    for order_id in orders:
        await shop.ended(order_id)
    shop.system.verify()
    before = await _state(shop, sku, orders)

    jetstream = broker.jetstream()
    for stream in STREAMS[:-1]:
        last = (await jetstream.stream_info(stream.name)).state.last_seq
        for seq in range(1, last + 1):
            message = await jetstream.get_msg(stream.name, seq)
            headers = {"Nats-Msg-Id": secrets.token_hex(8)}
            await jetstream.publish(message.subject or "", message.data or b"", headers=headers)

    report = shop.system.verify()
    assert "published again" in report
    assert await _state(shop, sku, orders) == before


async def test_garbage_on_every_subject_is_parked_with_its_reason_and_stops_nothing(
    shop: Shop, broker: Client
) -> None:
    jetstream = broker.jetstream()
    already = await dead_letters(broker)
    expected = 0
    for subject, readers in READ.items():
        rubbish = _garbage(KINDS[subject].__name__)
        for body in rubbish:
            await jetstream.publish(subject, body)
        expected += len(rubbish) * len(readers)
    for subject in KINDS.keys() - READ.keys():
        await jetstream.publish(subject, b"nobody but audit reads this")

    async def all_parked() -> bool:
        return await dead_letters(broker) == already + expected

    await until(all_parked, 60)
    shop.system.parked += expected
    listed = shop.system.cli("deadletters", "list", "--limit", "1000").stdout
    assert "not an event" in listed
    shown = shop.system.cli("deadletters", "show", str(already + 1))
    assert shown.returncode == 0
    assert "reason:" in shown.stdout
    sku = await shop.stocked()
    assert (await shop.ended(await shop.place(sku)))["status"] == "confirmed"
    shop.system.verify()


def _garbage(kind: str) -> list[bytes]:
    """Not JSON, unknown type, missing fields, a type of another subject, NaN, and the largest."""
    order_id = f"BAD-{secrets.token_hex(4)}"
    whole = foreign(order_id, currency="EUR", reason="x", reference="r") | {"type": kind}
    nan = json.dumps(whole | {"data": whole["data"] | {"amount": float("nan")}})
    text_nan = json.dumps(
        whole
        | {
            "data": {
                "order_id": order_id,
                "customer_id": "C",
                "amount": "NaN",
                "currency": "EUR",
                "short": "none",
                "requested_by": 7,
                "reference": 7,
            }
        }
    )
    other = "StockAdjusted"
    return [
        b"\x00\xff not JSON",
        json.dumps(whole | {"type": "NoSuchThing"}).encode(),
        json.dumps({"type": kind}).encode(),
        json.dumps(whole | {"type": other}).encode(),
        json.dumps(whole | {"data": {}}).encode(),
        json.dumps(whole | {"timestamp": "yesterday"}).encode(),
        json.dumps(whole | {"aggregate_id": "a b"}).encode(),
        nan.encode(),
        text_nan.encode(),
        b"[" * 5_000,
        b"x" * MESSAGE_BYTES_MAX,
    ]


async def test_more_than_the_largest_message_is_refused_by_the_stream(broker: Client) -> None:
    with pytest.raises(nats.js.errors.APIError):
        await broker.jetstream().publish("orders.created", b"x" * (MESSAGE_BYTES_MAX + 1))


async def _state(shop: Shop, sku: str, orders: list[str]) -> list[Any]:
    found: list[Any] = [await shop.get("inventory", f"/stock/{sku}")]
    for order_id in orders:
        mail = shop.get("sandbox", f"/sandbox/mail?order_id={order_id}")
        found += await asyncio.gather(shop.order(order_id), shop.charge(order_id), mail)
    return found
