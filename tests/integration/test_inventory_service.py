"""Inventory on real parts: what is called alike keeps one history."""

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from notifications_audit_parts import Running, event, migrate, running, until

from ironcart.embedded.nats_server import NatsServer
from ironcart.events import Item, OrderConfirmed, OrderCreated, StockAdjusted
from ironcart.services.inventory.app import SERVICE, Settings
from ironcart.services.inventory.handlers import adjust
from ironcart.services.inventory.store import Shelf

NAME = "SKU-1"
AMOUNT = Decimal("10.00")


@pytest.fixture
async def inventory(own_broker: NatsServer, database_url: str) -> AsyncIterator[Running]:
    await migrate(database_url, "inventory")
    async with running(SERVICE, Settings(), own_broker.url, database_url) as found:
        yield found


async def put(service: Running, sku: str, on_hand: int) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.put(f"{service.api.url}/stock/{sku}", json={"on_hand": on_hand}) as answer,
    ):
        assert answer.status == 200, await answer.text()


def created(order_id: str) -> Any:
    items = (Item(NAME, 2, Decimal("5.00")),)
    return event("orders", OrderCreated(order_id, "C-1", AMOUNT, "EUR", items), 1)


def confirmed(order_id: str) -> Any:
    return event("orders", OrderConfirmed(order_id, "C-1", AMOUNT, "EUR"), 2)


async def told(service: Running, name: str, count: int) -> list[str]:
    """Types of what was published about a name, once there are so many; versions from 1."""

    async def enough() -> Any:
        rows = await service.database.fetch(
            "SELECT e.body FROM events e JOIN batches b USING (batch_no)"
            " WHERE e.aggregate_id = $1 AND b.first_seq IS NOT NULL ORDER BY e.version",
            name,
        )
        return rows if len(rows) >= count else None

    facts = [json.loads(row["body"]) for row in await until(enough)]
    assert [fact["version"] for fact in facts] == list(range(1, count + 1))
    assert len({fact["id"] for fact in facts}) == count
    return [fact["type"] for fact in facts]


async def test_an_order_may_be_called_like_a_sku(inventory: Running) -> None:
    await put(inventory, NAME, 9)
    await inventory.publish([created(NAME)])
    assert await told(inventory, NAME, 2) == ["StockAdjusted", "StockReserved"]
    await put(inventory, NAME, 8)
    await inventory.publish([confirmed(NAME)])
    assert await told(inventory, NAME, 4) == [
        "StockAdjusted",
        "StockReserved",
        "StockAdjusted",
        "StockCommitted",
    ]
    await put(inventory, NAME, 7)
    assert await told(inventory, NAME, 5)
    shown = await inventory.api.get(f"/stock/{NAME}")
    assert shown == {"sku": NAME, "on_hand": 7, "reserved": 0, "available": 7}


async def test_a_sku_may_be_called_like_an_order(inventory: Running) -> None:
    await inventory.publish([created("ORD-1")])
    assert await told(inventory, "ORD-1", 1) == ["StockRejected"]
    await put(inventory, "ORD-1", 9)
    assert await told(inventory, "ORD-1", 2) == ["StockRejected", "StockAdjusted"]


def test_an_adjustment_follows_whatever_was_told_under_its_name() -> None:
    shelf = Shelf("SKU-1", 5, 0, 3)
    for last, version in ((0, 4), (2, 4), (3, 4), (7, 8)):
        after, fact = adjust(shelf, 6, "set", last)
        assert fact is not None
        assert (fact.aggregate_id, fact.version, after.version) == ("SKU-1", version, version)
        assert fact.data == StockAdjusted("SKU-1", 1, "set")
