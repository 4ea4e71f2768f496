"""Inventory's database went back in time, and not everything that it had said was published."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from msgspec import Struct
from notifications_audit_parts import TRACE_ID, migrate

from ironcart.cli.rebuild import _rebuild
from ironcart.embedded.nats_server import NatsServer
from ironcart.events import (
    STREAMS,
    SUBJECTS,
    Item,
    Line,
    StockAdjusted,
    StockCommitted,
    StockReleased,
    StockReserved,
    aggregate_of,
)
from ironcart.services.inventory.app import SERVICE
from ironcart.toolkit.broker import Broker, Outgoing, ensure, publish, reader
from ironcart.toolkit.database import Database
from ironcart.toolkit.envelope import seal
from ironcart.toolkit.history import History
from ironcart.toolkit.outcomes import Fact
from ironcart.toolkit.recovery import Recovery, recover

STREAM_BYTES_MAX = 64 * 1024**2
SKU = "SKU-1"
LINES = (Line(SKU, 2),)


@dataclass
class Restored:
    """Inventory with an empty database, and a stream that may have more."""

    broker: Broker
    database: Database
    database_url: str
    recovery: Recovery

    async def told(self, *facts: tuple[int, Struct]) -> None:
        """Publish these facts, each with its version, one after the other."""
        for version, data in facts:
            fact = Fact(aggregate_of(data), version, data)
            key, body = seal("inventory", fact, trace_id=TRACE_ID, causation_id=None)
            await publish(self.broker, [Outgoing(str(key), SUBJECTS[type(data)], body, {})])

    async def shelf(self) -> tuple[int, int, int]:
        """On hand, reserved and the version of the one SKU."""
        row = await self.database.fetchrow("SELECT on_hand, reserved, version FROM stock")
        assert row is not None
        return row["on_hand"], row["reserved"], row["version"]

    async def reservation(self, order_id: str) -> tuple[str, int]:
        row = await self.database.fetchrow(
            "SELECT state, version FROM reservations WHERE order_id = $1", order_id
        )
        assert row is not None
        return row["state"], row["version"]

    async def unpublished(self) -> list[dict[str, Any]]:
        """The data of facts that the stream does not have yet."""
        rows = await self.database.fetch(
            "SELECT convert_from(body, 'utf8')::json -> 'data' ->> 'sku' AS sku,"
            " (convert_from(body, 'utf8')::json -> 'data' ->> 'delta')::int AS delta,"
            " convert_from(body, 'utf8')::json -> 'data' ->> 'reason' AS reason, version"
            " FROM events JOIN batches USING (batch_no) WHERE first_seq IS NULL"
        )
        return [dict(row) for row in rows]

    async def differences(self) -> int:
        """What `ironcart rebuild inventory` finds."""
        return (await _rebuild(SERVICE, self.database_url, keep=False)).found


@pytest.fixture
async def inventory(own_broker: NatsServer, database_url: str) -> AsyncIterator[Restored]:
    await migrate(database_url, "inventory")
    broker, database = Broker(own_broker.url, "test"), Database(database_url, "inventory", "test")
    await broker.connect()
    await ensure(broker, STREAMS, SERVICE.durables, replicas=1, bytes_max=STREAM_BYTES_MAX)
    history = History("inventory", SERVICE.subjects)
    found = Recovery(history, broker, database, SERVICE.durables, SERVICE.memory)
    try:
        yield Restored(broker, database, database_url, found)
    finally:
        await broker.close()
        await database.close()


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fact is read and folded by itself."""
    monkeypatch.setattr(recover, "FOLD_FACTS", 1)
    monkeypatch.setattr(reader, "READ_MESSAGES_MAX", 1)


def reserved(order_id: str) -> StockReserved:
    items = (Item(SKU, 2, Decimal("5.00")),)
    return StockReserved(order_id, "C-1", Decimal("10.00"), "EUR", items)


def adjusted(delta: int) -> StockAdjusted:
    return StockAdjusted(SKU, delta, "set")


async def test_units_that_were_promised_are_there_though_no_fact_brought_them(
    inventory: Restored,
) -> None:
    await inventory.told((1, adjusted(1)), (1, reserved("ORD-1")), (1, reserved("ORD-2")))
    assert await inventory.recovery.run()
    assert await inventory.shelf() == (4, 4, 2)
    assert await inventory.unpublished() == [
        {"sku": SKU, "delta": 3, "reason": "recovered", "version": 2}
    ]
    assert await inventory.differences() == 0


async def test_units_that_were_sold_are_gone_though_no_fact_brought_them(
    inventory: Restored,
) -> None:
    await inventory.told((1, reserved("ORD-1")), (2, StockCommitted("ORD-1", LINES)))
    assert await inventory.recovery.run()
    assert await inventory.shelf() == (0, 0, 1)
    assert [each["delta"] for each in await inventory.unpublished()] == [2]
    assert await inventory.differences() == 0


@pytest.mark.usefixtures("one_by_one")
async def test_units_that_are_told_of_late_are_counted_once(inventory: Restored) -> None:
    await inventory.told(
        (1, reserved("ORD-1")),
        (2, StockCommitted("ORD-1", LINES)),
        (1, reserved("ORD-2")),
        (2, adjusted(-1)),
        (1, adjusted(10)),
    )
    assert await inventory.recovery.run()
    assert await inventory.shelf() == (7, 2, 2)
    assert await inventory.unpublished() == []
    assert await inventory.differences() == 0


@pytest.mark.usefixtures("one_by_one")
async def test_a_recovery_that_was_cut_short_puts_right_what_is_lacking_once(
    inventory: Restored,
) -> None:
    await inventory.told((1, reserved("ORD-1")), (1, reserved("ORD-2")))
    assert await inventory.recovery.run()
    await inventory.database.execute("UPDATE recoveries SET rewound_at = NULL")
    await inventory.recovery.finish()
    assert await inventory.shelf() == (4, 4, 1)
    assert [each["delta"] for each in await inventory.unpublished()] == [4]


async def test_a_release_frees_nothing_when_its_reservation_was_lost(inventory: Restored) -> None:
    await inventory.told((1, adjusted(5)), (2, StockReleased("ORD-1", LINES)))
    assert await inventory.recovery.run()
    assert await inventory.shelf() == (5, 0, 1)
    assert await inventory.reservation("ORD-1") == ("released", 2)


async def test_a_reservation_that_was_published_after_its_end_stays_ended(
    inventory: Restored,
) -> None:
    await inventory.told(
        (1, adjusted(5)), (2, StockReleased("ORD-1", LINES)), (1, reserved("ORD-1"))
    )
    assert await inventory.recovery.run()
    assert await inventory.shelf() == (5, 0, 1)
    assert await inventory.reservation("ORD-1") == ("released", 2)
    assert await inventory.differences() == 0
