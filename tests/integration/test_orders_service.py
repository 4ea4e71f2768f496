"""Orders on real parts: it lets orders expire, and refuses what it could not keep."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from notifications_audit_parts import Running, event, migrate, running, until
from prometheus_client import REGISTRY

from ironcart.embedded.nats_server import NatsServer
from ironcart.events import OrderCreated, PaymentSucceeded, PaymentVoided, StockReserved
from ironcart.services.orders.app import SERVICE, Settings
from ironcart.services.orders.handlers import undo
from ironcart.toolkit.database import Database
from ironcart.toolkit.history import Commit, History
from ironcart.toolkit.vault import new_master_key

AMOUNT = Decimal("5.00")
LONG_S = 3_600.0
Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
async def start(own_broker: NatsServer, database_url: str) -> Start:
    """Orders by itself, with nobody to answer its events but the test."""
    await migrate(database_url, "vault")
    await migrate(database_url, "orders")

    @asynccontextmanager
    async def started(**settings: Any) -> AsyncIterator[Running]:
        own = Settings(vault_database_url=database_url, master_key=new_master_key(), **settings)
        async with running(SERVICE, own, own_broker.url, database_url) as found:
            yield found

    return started


async def post(service: Running, customer: str = "C-1", **fields: Any) -> tuple[int, Any]:
    line = {"sku": "SKU-1", "quantity": 1, "unit_price": 5.00}
    body = {"customer_id": customer, "items": [line], **fields}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{service.api.url}/orders", json=body) as answer,
    ):
        found = json.loads(await answer.read())
        if answer.status == 503:
            assert 1 <= int(answer.headers["Retry-After"]) <= 30
            assert "same Idempotency-Key" in found["detail"]
        return answer.status, found


async def placed(service: Running) -> str:
    status, body = await post(service)
    assert status == 202, body
    order_id: str = body["order_id"]
    return order_id


async def becomes(service: Running, order_id: str, status: str) -> dict[str, Any]:
    async def look() -> Any:
        order = await service.api.get(f"/orders/{order_id}")
        return order if order["status"] == status else None

    found: dict[str, Any] = await until(look)
    return found


async def facts(service: Running, order_id: str) -> list[dict[str, Any]]:
    rows = await service.database.fetch(
        "SELECT body FROM events WHERE aggregate_id = $1 ORDER BY version", order_id
    )
    return [json.loads(row["body"]) for row in rows]


async def grow_old(service: Running, *order_ids: str) -> None:
    await service.database.execute(
        "UPDATE orders SET created_at = created_at - interval '2 hours'"
        " WHERE order_id = ANY($1::text[])",
        list(order_ids),
    )


def reserved(order_id: str, amount: Decimal = AMOUNT) -> Any:
    return event("inventory", StockReserved(order_id, "C-1", amount, "EUR"), 1)


def counted(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


async def test_an_order_that_takes_too_long_is_undone_and_one_that_was_paid_is_not(
    start: Start,
) -> None:
    async with start(orders_expire_after_s=LONG_S) as service:
        unheard, waiting, paid, young = [await placed(service) for _ in range(4)]
        await service.publish([reserved(waiting), reserved(paid)])
        succeeded = PaymentSucceeded(paid, AMOUNT, "EUR", "pi_1")
        await service.publish([event("payments", succeeded, 1)])
        await becomes(service, waiting, "reserved")
        await becomes(service, paid, "confirmed")
        await grow_old(service, unheard, waiting, paid)

        for order_id in (unheard, waiting):
            order = await becomes(service, order_id, "cancelling")
            assert order["reason"] == "expired"
            (asked,) = (await facts(service, order_id))[1:]
            assert asked["type"] == "OrderCancellationRequested"
            assert asked["data"] == {
                "order_id": order_id,
                "requested_by": "orders",
                "reason": "expired",
            }
        # What payments answers ends it: nothing was charged for one, and the other is paid.
        await service.publish([event("payments", PaymentVoided(unheard, "expired"), 1)])
        assert (await becomes(service, unheard, "cancelled"))["reason"] == "expired"
        assert (await service.api.get(f"/orders/{paid}"))["status"] == "confirmed"
        assert (await service.api.get(f"/orders/{young}"))["status"] == "pending"


async def test_replicas_that_look_at_once_let_an_order_expire_once(
    start: Start, database_url: str
) -> None:
    async with start() as service:
        late = [await placed(service) for _ in range(12)]
        await grow_old(service, *late)
        database, history = (
            Database(database_url, "orders", "t"),
            History("orders", SERVICE.subjects),
        )
        commits: list[Commit] = []
        undone = await asyncio.gather(
            *(
                undo.expire(LONG_S, database=database, history=history, publish=commits.append)
                for _ in range(5)
            )
        )
        again = await undo.expire(
            LONG_S, database=database, history=history, publish=commits.append
        )
        plan = await database.fetch(
            "EXPLAIN SELECT 1 FROM orders WHERE phase = 'open'"
            " AND created_at < now() LIMIT 500 FOR UPDATE SKIP LOCKED"
        )
        await database.close()

        assert sorted(order_id for some in undone for order_id in some) == sorted(late)
        assert sum(len(commit.messages) for commit in commits) == len(late)
        assert again == []
        assert "orders_by_phase" in "".join(row[0] for row in plan)


async def test_another_order_under_a_known_id_changes_nothing_and_is_told(start: Start) -> None:
    async with start() as service:
        order_id = await placed(service)
        before = counted("ironcart_order_conflicts_total")
        foreign = event("elsewhere", OrderCreated(order_id, "C-1", Decimal(9), "EUR"), 1)
        same = event("another", OrderCreated("ORD-X", "C-1", AMOUNT, "EUR"), 1)
        twice = event("elsewhere", OrderCreated("ORD-X", "C-1", AMOUNT, "EUR"), 1)
        other = event("elsewhere", OrderCreated("ORD-X", "C-2", AMOUNT, "EUR"), 2)
        await service.publish([foreign, same, twice, other, reserved(order_id, Decimal(9))])

        await becomes(service, order_id, "reserved")

        async def told() -> bool:
            return counted("ironcart_order_conflicts_total") == before + 3

        await until(told)
        await becomes(service, "ORD-X", "pending")
        assert (await service.api.get(f"/orders/{order_id}"))["amount"] == 5
        assert (await service.api.get("/orders/ORD-X"))["customer_id"] == "C-1"


async def test_a_damaged_key_in_the_vault_holds_up_nobody_elses_order(
    start: Start, database_url: str
) -> None:
    vault = Database(database_url, "vault", "test")
    async with start() as service:
        await vault.execute("INSERT INTO keys (customer_id, wrapped) VALUES ('C-bad', '\\x00')")
        customers = [f"C-{n}" for n in range(9)] + ["C-bad", "C-bad"]
        answers = await asyncio.gather(
            *(post(service, each, email="a@b.example") for each in customers)
        )
        assert [status for status, _ in answers] == [202] * 9 + [503] * 2
    await vault.close()


async def test_a_full_disk_is_a_503_at_the_door_until_there_is_room_again(start: Start) -> None:
    async with start() as service:
        await service.database.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END $$"
        )
        await service.database.execute(
            "CREATE TRIGGER full_disk BEFORE INSERT ON orders EXECUTE FUNCTION full_disk()"
        )
        refused = await asyncio.gather(*(post(service) for _ in range(5)))
        assert {status for status, _ in refused} == {503}
        status, problem = await post(service)
        assert (status, problem["detail"][:24]) == (503, "the database is away: se")
        await service.database.execute("DROP TRIGGER full_disk ON orders")

        async def accepted() -> bool:
            return (await post(service))[0] == 202

        await until(accepted)
        assert [
            status for status, _ in await asyncio.gather(*(post(service) for _ in range(5)))
        ] == [202] * 5
