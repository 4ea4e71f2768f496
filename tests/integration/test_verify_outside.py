"""verify reads a real broker, a real database and a sandbox, and says what it finds there."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import nats
import pytest
from aiohttp import web
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import NotFoundError
from typer.testing import CliRunner

from ironcart.cli.verify import verify as command
from ironcart.verify.facts import SERVICES, STREAMS, CannotReadError
from ironcart.verify.outside import Report, verify
from verify_world import Message, World, clean_world

STREAM_SUBJECTS = {
    "ORDERS": "orders.>",
    "INVENTORY": "inventory.>",
    "PAYMENTS": "payments.>",
    "NOTIFICATIONS": "notifications.>",
    "DEADLETTERS": "dlq.>",
}
MANY_ORDERS = 3_000

TOOLKIT_TABLES = """
CREATE SCHEMA {0};
CREATE TABLE {0}.batches (batch_no bigint PRIMARY KEY, n int, first_seq bigint,
    claimed_at timestamptz, recorded_at timestamptz DEFAULT now());
CREATE TABLE {0}.events (id uuid, aggregate_id text, version int, type text, subject text,
    traceparent text, body bytea, recorded_at timestamptz DEFAULT now(), batch_no bigint,
    batch_pos int, stream_seq bigint, PRIMARY KEY (aggregate_id, version));
CREATE TABLE {0}.inbox (event_id uuid PRIMARY KEY, stream text, stream_seq bigint);
CREATE TABLE {0}.failures (stream text, stream_seq bigint, attempts int, error text,
    PRIMARY KEY (stream, stream_seq));
CREATE TABLE {0}.jobs (key text PRIMARY KEY, due_at timestamptz, created_at timestamptz,
    attempts int DEFAULT 0, error text);
CREATE TABLE {0}.parked (stream text, stream_seq bigint, state text);
"""
SERVICE_TABLES = """
CREATE TABLE orders.orders (order_id text PRIMARY KEY, customer_id text, status text,
    amount_minor bigint, currency text, items bytea, contact text);
CREATE TABLE orders.idempotency_keys (
    key text PRIMARY KEY, order_id text, caller text DEFAULT 'anonymous');
CREATE TABLE inventory.stock (sku text PRIMARY KEY, on_hand bigint, reserved bigint);
CREATE TABLE inventory.reservations (order_id text PRIMARY KEY, state text);
CREATE TABLE payments.payments (order_id text PRIMARY KEY, state text, amount_minor bigint,
    currency text, intent_id text, refunded_minor bigint);
CREATE TABLE notifications.notifications (order_id text, template text, channel text, state text,
    message_id text);
CREATE TABLE audit.entries (stream text, stream_seq bigint, subject text, event_id text,
    body bytea, type text DEFAULT '', aggregate_id text DEFAULT '', headers text DEFAULT '{}',
    stored_at timestamptz DEFAULT now(), PRIMARY KEY (stream, stream_seq));
CREATE TABLE audit.links (stream text, stream_seq bigint, hash bytea, version int DEFAULT 1,
    PRIMARY KEY (stream, stream_seq));
"""


@dataclass
class Shop:
    """Real parts that hold nothing yet, and the folder whose run.json says where they are."""

    folder: Path
    connection: Any
    jetstream: JetStreamContext
    sandbox: dict[str, Any]

    async def hold(self, world: World) -> None:
        """Put a world into the real parts."""
        world.write_log(self.folder)
        self.sandbox.update(charges=world.charges, mail=world.mail)
        for stream, messages in world.streams.items():
            for message in messages:
                await self.jetstream.publish(
                    message.subject, message.body, stream=stream, headers=dict(message.headers)
                )
        await self._fill_tables(world)

    async def _fill_tables(self, world: World) -> None:
        insert = self.connection.executemany
        await insert(
            "INSERT INTO orders.orders VALUES ($1, $2, $3, $4, $5, $6, $7)",
            [
                (
                    order_id,
                    row["customer_id"],
                    row["status"],
                    row["amount_minor"],
                    row["currency"],
                    json.dumps(row["items"]).encode(),
                    row["contact"],
                )
                for order_id, row in world.orders.items()
            ],
        )
        keys = "INSERT INTO orders.idempotency_keys (key, order_id) VALUES ($1, $2)"
        await insert(keys, world.keys.items())
        stock = [(sku, *levels) for sku, levels in world.stock.items()]
        await insert("INSERT INTO inventory.stock VALUES ($1, $2, $3)", stock)
        await insert(
            "INSERT INTO inventory.reservations VALUES ($1, $2)", world.reservations.items()
        )
        await insert(
            "INSERT INTO payments.payments VALUES ($1, $2, $3, $4, $5, $6)",
            [(order_id, *row.values()) for order_id, row in world.payments.items()],
        )
        await insert(
            "INSERT INTO notifications.notifications VALUES ($1, $2, 'mail', $3, $4)",
            [tuple(row.values()) for row in world.notifications],
        )
        await self._fill_history(world)
        entries = [(*entry[:5], *entry[7:]) for entry in world.trail()]
        await insert("INSERT INTO audit.entries VALUES ($1, $2, $3, $4, $5, $6, $7)", entries)
        links = [(entry[0], entry[1], entry[5]) for entry in world.trail()]
        await insert("INSERT INTO audit.links VALUES ($1, $2, $3)", links)

    async def _fill_history(self, world: World) -> None:
        for service in SERVICES:
            rows = [row for row in world.history if row.service == service]
            batches = [(row.batch_no, row.seq) for row in rows]
            await self.connection.executemany(
                f"INSERT INTO {service}.batches VALUES ($1, 1, $2)", batches
            )
            await self.connection.executemany(
                f"INSERT INTO {service}.events (id, aggregate_id, version, type, subject, body, "
                "batch_no, batch_pos) VALUES ($1, $2, $3, $4, $5, $6, $7, 0)",
                [
                    (r.id, r.aggregate, r.version, r.type, r.subject, r.body, r.batch_no)
                    for r in rows
                ],
            )

    async def judge(self, *, settle_s: float = 10, expected_dead_letters: int = 0) -> Report:
        """Run verify on the shop."""
        return await verify(
            self.folder, settle_s=settle_s, expected_dead_letters=expected_dead_letters
        )


@pytest.fixture
async def shop(
    tmp_path: Path, broker_url: str, database_url: str, unused_tcp_port: int
) -> AsyncIterator[Shop]:
    sandbox: dict[str, Any] = {"charges": [], "mail": []}

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(sandbox[request.match_info["what"]])

    app = web.Application()
    app.router.add_get("/sandbox/{what}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    run = {
        "nats": {"urls": [broker_url]},
        "postgres": {"url": database_url},
        "sandbox": {"url": f"http://127.0.0.1:{unused_tcp_port}"},
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    connection = await asyncpg.connect(database_url)
    for service in SERVICES:
        await connection.execute(TOOLKIT_TABLES.format(service))
    await connection.execute(SERVICE_TABLES)
    client = await nats.connect(broker_url)
    jetstream = client.jetstream()
    for stream in STREAMS:
        await _forget(jetstream, stream)
        await jetstream.add_stream(
            StreamConfig(name=stream, subjects=[STREAM_SUBJECTS[stream]], duplicate_window=0)
        )
    yield Shop(tmp_path, connection, jetstream, sandbox)
    for stream in STREAMS:
        await _forget(jetstream, stream)
    await client.close()
    await connection.close()
    await runner.cleanup()


async def _forget(jetstream: JetStreamContext, stream: str) -> None:
    try:
        await jetstream.delete_stream(stream)
    except NotFoundError:
        return


def _broken(report: Report) -> dict[str, list[str]]:
    return {f.name: f.faults.lines() for f in report.findings if not f.ok}


async def test_a_clean_shop_breaks_no_invariant(shop: Shop) -> None:
    await shop.hold(clean_world())

    report = await shop.judge()

    assert _broken(report) == {}
    assert report.ok
    assert report.quiet
    assert report.findings[0].figures["accepted"] == 6


async def test_every_event_published_again_breaks_nothing(shop: Shop) -> None:
    world = clean_world()
    for messages in world.streams.values():
        messages += [Message(message.subject, message.body) for message in list(messages)]
    await shop.hold(world)

    assert _broken(await shop.judge()) == {}


async def test_dead_letters_are_shown_with_their_reasons(shop: Shop) -> None:
    world = clean_world()
    garbage = Message("orders.created", b"\xff" * 200_000)
    world.streams["ORDERS"].append(garbage)
    why = {"Ironcart-Reason": "not JSON", "Nats-Msg-Id": "dead-1"}
    world.streams["DEADLETTERS"].append(Message("dlq.orders.unknown", garbage.body, why))
    await shop.hold(world)

    report = await shop.judge()

    assert _broken(report) == {
        "I9": ["dead letters, 0 expected: 1 (dlq.orders.unknown: not JSON x1)"]
    }
    assert (await shop.judge(expected_dead_letters=1)).ok


async def test_a_lost_order_a_double_charge_and_a_cut_trail_are_found(shop: Shop) -> None:
    world = clean_world()
    world.charges.append(world.charges[0] | {"id": "pi_again"})
    await shop.hold(world)
    await shop.connection.execute("DELETE FROM orders.orders WHERE order_id = 'ORD-3'")
    await shop.connection.execute("DELETE FROM audit.entries WHERE stream = 'ORDERS'")

    broken = _broken(await shop.judge())

    assert broken["I1"] == ["accepted, not in the database: 1 (ORD-3)"]
    assert broken["I2"] == ["charged more than once: 1 (ORD-1 x2)"]
    assert broken["I8"][0].startswith("not in the audit trail")


async def test_a_deleted_message_is_a_hole(shop: Shop) -> None:
    await shop.hold(clean_world())
    await shop.jetstream.delete_msg("ORDERS", 3)

    broken = _broken(await shop.judge())

    assert "messages missing in a stream: 1 (ORDERS 3 to 3)" in broken["I10"]


async def test_it_waits_until_what_is_under_way_has_come_to_its_end(shop: Shop) -> None:
    await shop.hold(clean_world())
    await shop.connection.execute("INSERT INTO payments.jobs VALUES ('j', now(), now())")
    told = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        judged = group.create_task(verify(shop.folder, settle_s=30, tell=lambda _: told.set()))
        await told.wait()
        await shop.connection.execute("DELETE FROM payments.jobs")

    assert judged.result().ok
    assert judged.result().quiet


async def test_a_system_that_does_not_come_to_rest_is_judged_and_said_to_be_busy(
    shop: Shop,
) -> None:
    await shop.hold(clean_world())
    await shop.jetstream.add_consumer("ORDERS", ConsumerConfig(durable_name="inventory"))
    await shop.connection.execute("UPDATE notifications.batches SET first_seq = NULL")
    await shop.connection.execute("UPDATE orders.orders SET status = NULL WHERE order_id = 'ORD-4'")

    report = await shop.judge(settle_s=0)

    assert not report.quiet
    assert _broken(report)["I9"] == [
        "not quiet after 0 s, stuck: inventory has 14 pending and 0 unacknowledged on ORDERS",
        "not quiet after 0 s, stuck: notifications has 6 events unpublished",
        "facts about an order that never came: 1 (ORD-4)",
    ]


async def test_jobs_and_failures_that_are_left_are_found(shop: Shop) -> None:
    await shop.hold(clean_world())
    await shop.connection.execute(
        "INSERT INTO payments.jobs VALUES ('j', now(), now() - interval '2 minutes')"
    )
    await shop.connection.execute("INSERT INTO orders.failures VALUES ('PAYMENTS', 1, 3, 'x')")
    await shop.connection.execute("UPDATE notifications.notifications SET state = 'due'")

    broken = _broken(await shop.judge(settle_s=0))["I9"]

    assert "jobs open for more than 60 s: 1 (payments)" in broken
    assert "failed, neither handled nor dead-lettered: 1 (orders)" in broken
    assert "rows that wait for a job that does not exist: 6 (notifications)" in broken


async def test_a_webhook_put_off_by_its_breaker_is_no_fault_until_nobody_takes_it_up(
    shop: Shop,
) -> None:
    await shop.hold(clean_world())
    await shop.connection.execute(
        "INSERT INTO notifications.jobs VALUES"
        " ('webhook:WHE-1/ORD-1/confirmed', now() + interval '1 minute',"
        "  now() - interval '2 minutes', 0, 'breaker webhook WHE-1 is open')"
    )

    put_off = await shop.judge(settle_s=0)
    await shop.connection.execute("UPDATE notifications.jobs SET due_at = now() - interval '1 h'")
    abandoned = _broken(await shop.judge(settle_s=0))
    await shop.connection.execute("UPDATE notifications.jobs SET error = NULL")
    never_tried = _broken(await shop.judge(settle_s=0))

    assert put_off.ok
    assert put_off.quiet
    assert abandoned == {"I11": ["jobs overdue that nobody works on: 1 (notifications)"]}
    assert "jobs open for more than 60 s: 1 (notifications)" in never_tried["I9"]


async def test_a_missing_stream_or_table_is_said_in_one_line(shop: Shop) -> None:
    await shop.connection.execute("DROP TABLE audit.links")
    with pytest.raises(CannotReadError, match=r"has no audit\.links: run `ironcart provision`"):
        await shop.judge()
    await shop.jetstream.delete_stream("PAYMENTS")
    await shop.connection.execute(
        "CREATE TABLE audit.links (stream text, stream_seq bigint, hash bytea)"
    )
    with pytest.raises(CannotReadError, match="no stream PAYMENTS: run `ironcart provision`"):
        await shop.judge()


async def test_the_command_exits_0_1_or_2(shop: Shop) -> None:
    import typer

    app = typer.Typer()
    app.command()(command)
    await shop.hold(clean_world())

    async def run(*options: str) -> Any:
        arguments = ["--data", str(shop.folder), "--settle", "5", *options]
        return await asyncio.to_thread(CliRunner().invoke, app, arguments)

    clean = await run("--json")
    assert clean.exit_code == 0
    assert json.loads(clean.stdout)["ok"] is True
    await shop.connection.execute("UPDATE inventory.stock SET on_hand = on_hand + 1")
    broken = await run()
    assert broken.exit_code == 1
    assert "BROKEN: I4" in broken.stdout
    (shop.folder / "run.json").unlink()
    unreadable = await run()
    assert unreadable.exit_code == 2
    assert "start the system with `ironcart up" in unreadable.stderr


async def test_thousands_of_orders_are_judged_in_seconds(shop: Shop) -> None:
    world = World()
    world.fill("LOAD-0001", 10 * MANY_ORDERS)
    for number in range(1, MANY_ORDERS + 1):
        world.place(number)
    # Publishing is not what is measured, so the streams are filled in pipelined batches.
    messages = [(s, m) for s, of_stream in world.streams.items() for m in of_stream]
    jetstream = shop.jetstream
    publishing = [
        await jetstream.publish_async(m.subject, m.body, stream=s, headers=dict(m.headers))
        for s, m in messages
    ]
    await asyncio.gather(*publishing)
    filled, world.streams = world.streams, {}
    world.audit = World(streams=filled).trail()
    await shop.hold(world)

    # Of its own: what else the machine does is no fault of the judge.
    used_s = time.process_time()
    report = await shop.judge()

    assert _broken(report) == {}
    assert report.findings[0].figures["accepted"] == MANY_ORDERS
    assert time.process_time() - used_s < 20
