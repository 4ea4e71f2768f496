"""What orders asks of its table by where an order stands: indexed, and cheap to change."""

from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import pytest
from msgspec.structs import replace
from notifications_audit_parts import migrate

from ironcart.embedded.status import StatusLine
from ironcart.services.orders.handlers.table import STATUSES
from ironcart.services.orders.store import Order, Store
from ironcart.toolkit.database import Connection, Database

FEW = 3
EACH = 7
OPEN = ("pending", "reserved", "cancelling")
HOT = "SELECT pg_stat_get_xact_tuples_hot_updated('orders'::regclass)"
MIGRATION = "20261121001000_phases.sql"


def order(number: int, status: str) -> Order:
    return Order(
        order_id=f"ORD-{number:04}",
        caller="shop",
        customer_id="C-1",
        state=status,
        status=status,
        amount_minor=500,
        currency="EUR",
        items=b"[]",
        payment_method="pm_card_visa",
        contact="x" * 120,
        reason=None,
        version=1,
        trace_id="0" * 32,
    )


OF_EVERY_STATUS = [
    order(number, STATUSES[number % len(STATUSES)]) for number in range(EACH * len(STATUSES))
]
# Facts came before the order itself: nobody is shown it.
EARLY = replace(order(9_999, "early:res:"), status=None, customer_id=None)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "orders")
    found = Database(database_url, "orders", "test")
    async with found.transaction() as connection:
        await Store(connection).add([*OF_EVERY_STATUS, EARLY])
    yield found
    await found.close()


async def listed(connection: Connection, status: str | None) -> list[str]:
    """All orders of a status, a few at a time."""
    found: list[Order] = []
    before = None
    while page := await Store(connection).page(
        status=status, customer_id=None, before=before, limit=FEW
    ):
        found += page
        at = page[-1].created_at
        assert at is not None
        before = at, page[-1].order_id
    return [each.order_id for each in found]


async def of_each_status(database: Database) -> dict[str, list[str]]:
    async with database.acquire() as connection:
        return {status: await listed(connection, status) for status in STATUSES}


def expected(orders: list[Order]) -> dict[str, list[str]]:
    newest_first = sorted(orders, key=lambda each: each.order_id, reverse=True)
    return {
        status: [each.order_id for each in newest_first if each.status == status]
        for status in STATUSES
    }


async def test_every_status_lists_its_own_orders_and_no_early_ones(database: Database) -> None:
    assert await of_each_status(database) == expected(OF_EVERY_STATUS)
    async with database.acquire() as connection:
        assert len(await listed(connection, None)) == len(OF_EVERY_STATUS)


async def test_orders_that_move_are_listed_and_counted_where_they_went(database: Database) -> None:
    onward = {"pending": "reserved", "reserved": "confirmed", "cancelling": "cancelled"}
    moved = [
        replace(each, status=onward.get(each.status or "", each.status)) for each in OF_EVERY_STATUS
    ]
    async with database.transaction() as connection:
        assert await Store(connection).open(1_000) == EACH * len(OPEN)
        assert await Store(connection).open(FEW) == FEW

        await Store(connection).move(moved)

        assert await Store(connection).open(1_000) == EACH
    assert await of_each_status(database) == expected(moved)


async def test_an_order_that_is_reserved_leaves_the_indexes_alone(database: Database) -> None:
    pending = [each for each in OF_EVERY_STATUS if each.status == "pending"]
    async with database.transaction() as connection:
        await Store(connection).move(
            [replace(each, state="reserved", status="reserved") for each in pending]
        )
        assert await connection.fetchval(HOT) == len(pending)


@pytest.mark.parametrize("status", STATUSES)
async def test_a_page_of_one_status_is_read_from_the_index(database: Database, status: str) -> None:
    phase = "open" if status in ("pending", "reserved") else status
    async with database.acquire() as connection:
        plan = await connection.fetch(
            "EXPLAIN SELECT 1 FROM orders WHERE status IS NOT NULL AND status = $1::text"
            f" AND phase = '{phase}' ORDER BY created_at DESC, order_id DESC LIMIT 50",
            status,
        )
    text = "\n".join(row[0] for row in plan)
    assert "orders_by_phase" in text
    assert "Sort" not in text


async def test_a_caller_lists_its_own_orders_from_the_index_and_no_others(
    database: Database,
) -> None:
    names = ("key:shop", "key:other", "anonymous", "key:shop")
    async with database.transaction() as connection:
        store = Store(connection)
        await store.add(
            [
                replace(order(5_000 + number, "pending"), caller=names[number % len(names)])
                for number in range(EACH * len(names))
            ]
        )
        found = await store.page(
            status="pending", customer_id="C-1", before=None, limit=500, placed_by="key:shop"
        )
        assert len(found) == 2 * EACH
        assert {each.caller for each in found} == {"key:shop"}
        assert not await store.page(
            status=None, customer_id=None, before=None, limit=500, placed_by="shop"
        )
        plan = await connection.fetch(
            "EXPLAIN SELECT 1 FROM orders WHERE status IS NOT NULL AND caller = 'key:rare'"
            " AND caller LIKE '%:%' ORDER BY created_at DESC, order_id DESC LIMIT 50"
        )
    text = "\n".join(row[0] for row in plan)
    assert "orders_by_caller" in text
    assert "Sort" not in text


async def test_the_migration_goes_down_and_up_again_with_orders_in_the_table(
    database: Database,
) -> None:
    folder = Path(str(files("ironcart.services.orders") / "migrations"))
    up, _, down = (folder / MIGRATION).read_text().partition("-- migrate:down")

    await database.execute(down)
    assert not await database.fetch("SELECT 1 FROM pg_indexes WHERE indexname = 'orders_by_phase'")
    await database.execute(up)

    assert await of_each_status(database) == expected(OF_EVERY_STATUS)


async def test_the_status_line_of_up_counts_what_is_open(
    database: Database, database_url: str
) -> None:
    line = StatusLine(urls={"orders": "http://127.0.0.1:9"}, parts={}, database_url=database_url)
    async with line:
        assert await line._count_in_flight() == str(EACH * len(OPEN))
