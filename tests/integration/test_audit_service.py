"""Audit on a real broker and a real Postgres: everything is kept, chained, and holds."""

import asyncio
import base64
import hashlib
import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from notifications_audit_parts import Running, event, migrate, raw, running, serving, until
from prometheus_client import REGISTRY

from ironcart.embedded.nats_server import NatsServer
from ironcart.events import NotificationSent, OrderConfirmed, PaymentVoided, StockReleased
from ironcart.services.audit.api import endpoints
from ironcart.services.audit.app import SERVICE, STREAM_NAMES, Settings
from ironcart.services.audit.handlers.chain import genesis, record, verify, watch_chains
from ironcart.services.audit.store import Store
from ironcart.toolkit.broker import Delivery
from ironcart.toolkit.database import Database

GARBAGE = (
    b"",
    b"not json",
    b'{"id":"\xff"}',
    b'{"id":"a\\u0000b","type":"\\u0000","aggregate_id":"\\u0000"}',
    b'{"id":"e-9","type":"Unheard","aggregate_id":"ORD-1","data":NaN}',
    b"x" * 900_000,
)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "audit")
    pool = Database(database_url, "audit", "test")
    yield pool
    await pool.close()


def confirmed(order_id: str = "ORD-1") -> OrderConfirmed:
    return OrderConfirmed(order_id, "C-1", Decimal("39.98"), "EUR")


def delivery(seq: int, body: bytes | None = None, stream: str = "ORDERS") -> Delivery:
    text = body if body is not None else json.dumps({"id": f"e-{seq}"}).encode()
    return Delivery(stream, seq, "orders.created", text, {}, 1, 1_790_000_000.0 + seq, "")


async def keep(database: Database, *deliveries: Delivery) -> None:
    async with database.transaction() as connection:
        await record(deliveries, connection)


async def head(database: Database, stream: str = "ORDERS") -> int:
    row = await database.fetchrow(
        "SELECT coalesce(max(stream_seq), 0) AS seq, count(*) AS n FROM links WHERE stream = $1",
        stream,
    )
    assert row is not None
    assert row["seq"] == row["n"]
    return int(row["seq"])


async def recomputed(database: Database, stream: str) -> list[bytes]:
    """The chain as somebody else would compute it, from the bytes."""
    found, digest = [], hashlib.sha256(stream.encode()).digest()
    rows = await database.fetch("SELECT * FROM entries WHERE stream = $1 ORDER BY 2", stream)
    for row in rows:
        names = ("subject", "event_id", "type", "aggregate_id", "headers")
        since = row["stored_at"] - datetime(1970, 1, 1, tzinfo=UTC)
        parts = [*(row[name] for name in names), str(since // timedelta(microseconds=1)), ""]
        stored = hashlib.sha256("\0".join(parts).encode() + row["body"]).digest()
        digest = hashlib.sha256(digest + row["stream_seq"].to_bytes(8, "big") + stored).digest()
        found.append(digest)
    return found


async def caught_up(service: Running) -> bool:
    for stream in STREAM_NAMES:
        if await head(service.database, stream) < await service.last_seq(stream):
            return False
    return True


async def test_every_message_of_every_stream_is_kept_and_chained(
    own_broker: NatsServer, database: Database, database_url: str
) -> None:
    async with running(SERVICE, Settings(), own_broker.url, database_url) as service:
        events = [
            event("orders", confirmed()),
            event("inventory", StockReleased("ORD-1", ())),
            event("payments", PaymentVoided("ORD-1", "pi_1")),
            event("notifications", NotificationSent("ORD-1", "mail", "confirmed", "00ff")),
            raw("dlq.payments.unknown", b'{"aggregate_id":"ORD-1"}', {"Ironcart-Reason": "why"}),
        ]
        await service.publish(events)
        await service.publish([raw("orders.created", body) for body in GARBAGE])
        await until(lambda: caught_up(service))

        for stream in STREAM_NAMES:
            links = await database.fetch(
                "SELECT hash FROM links WHERE stream = $1 ORDER BY stream_seq", stream
            )
            assert [row["hash"] for row in links] == await recomputed(database, stream)
        bodies = await database.fetch(
            "SELECT body FROM entries WHERE stream = 'ORDERS' ORDER BY stream_seq"
        )
        assert [row["body"] for row in bodies] == [events[0].body, *GARBAGE]
        (letter,) = await database.fetch("SELECT * FROM entries WHERE stream = 'DEADLETTERS'")
        assert json.loads(letter["headers"])["Ironcart-Reason"] == "why"
        assert letter["aggregate_id"] == "ORD-1"

        verdict = await service.api.get("/audit/verify")
        assert {each["stream"]: each["entries"] for each in verdict["streams"]} == {
            "ORDERS": 7,
            "INVENTORY": 1,
            "PAYMENTS": 1,
            "NOTIFICATIONS": 1,
            "DEADLETTERS": 1,
        }
        assert all(each["verified"] and each["gap"] is None for each in verdict["streams"])
        stands = {
            each["stream"]: each for each in (await service.api.get("/audit/checkpoints"))["items"]
        }
        for each in verdict["streams"]:
            assert stands[each["stream"]]["hash"] == each["head_hash"]
            assert stands[each["stream"]]["stream_seq"] == each["head_seq"]


async def test_the_trail_of_an_order_is_in_time_order_and_in_pages(
    own_broker: NatsServer, database: Database, database_url: str
) -> None:
    async with running(SERVICE, Settings(), own_broker.url, database_url) as service:
        first, second = event("orders", confirmed()), event("payments", PaymentVoided("ORD-1", "p"))
        broken = raw("dlq.orders.unknown", b'{"aggregate_id":"ORD-1","data":"\xff"}')
        last = event("inventory", StockReleased("ORD-1", ()))
        await service.publish([first, second, event("orders", confirmed("ORD-2")), broken, last])
        await until(lambda: caught_up(service))

        trail = await service.api.get("/audit/ORD-1")
        assert [item["type"] for item in trail["items"]] == [
            "OrderConfirmed",
            "PaymentVoided",
            "StockReleased",
        ]
        assert trail["items"][0]["event"] == json.loads(first.body)
        assert all(len(item["hash"]) == 64 for item in trail["items"])
        assert trail["next_cursor"] is None

        collected: list[Any] = []
        cursor = ""
        while cursor is not None:
            page = await service.api.get(f"/audit/ORD-1?limit=1{cursor and '&cursor=' + cursor}")
            collected += page["items"]
            cursor = page["next_cursor"]
        assert collected == trail["items"]


async def test_a_body_that_cannot_be_decoded_is_shown_as_bytes(database: Database) -> None:
    async with serving("audit", endpoints(database, STREAM_NAMES)) as api:
        await database.execute(
            "INSERT INTO entries VALUES ('ORDERS', 1, 's', '', '', 'ORD-1', '{}', $1, now())",
            b"\xff\x00",
        )
        (item,) = (await api.get("/audit/ORD-1"))["items"]
        assert item["event"] == {"undecodable": base64.b64encode(b"\xff\x00").decode()}
        assert item["hash"] is None


async def test_wrong_queries_are_answered_with_what_is_wrong(database: Database) -> None:
    async with serving("audit", endpoints(database, STREAM_NAMES)) as api:
        await api.get("/audit/ORD-unheard-of", 404)
        for query, pointer in (
            ("ORD-1?limit=0", "/limit"),
            ("ORD-1?limit=x", "/limit"),
            ("ORD-1?cursor=%00", "/cursor"),
            ("ORD-1?cursor=eyJ9", "/cursor"),
            ("%00", "/aggregate_id"),
            ("verify?stream=NONE", "/stream"),
            ("verify?stream=ORDERS&from=0", "/from"),
            ("verify?stream=ORDERS&from=99999999999999999999", "/from"),
        ):
            problem = await api.get(f"/audit/{query}", 400)
            assert [fault["pointer"] for fault in problem["errors"]] == [pointer]


async def test_the_chain_waits_at_a_gap_and_goes_on_when_it_is_filled(database: Database) -> None:
    await keep(database, delivery(1), delivery(2))
    await keep(database, delivery(4), delivery(6), delivery(5))
    assert await head(database) == 2
    await keep(database, delivery(3))
    assert await head(database) == 6


async def test_a_repeat_changes_nothing(database: Database) -> None:
    await keep(database, delivery(1), delivery(2))
    await keep(database, delivery(2), delivery(1), delivery(3))
    await keep(database, delivery(3))
    assert await head(database) == 3
    rows = await database.fetch("SELECT hash FROM links ORDER BY stream_seq")
    assert [row["hash"] for row in rows] == await recomputed(database, "ORDERS")


async def test_another_message_under_a_known_sequence_is_reported_and_not_believed(
    database: Database,
) -> None:
    def reported() -> float:
        return (
            REGISTRY.get_sample_value("ironcart_audit_conflicts_total", {"stream": "ORDERS"}) or 0
        )

    before = reported()
    await keep(database, delivery(1))
    await keep(database, delivery(1, b"something else"), delivery(2))
    assert reported() == before + 1
    rows = await database.fetch("SELECT hash FROM links ORDER BY stream_seq")
    assert [row["hash"] for row in rows] == await recomputed(database, "ORDERS")


async def test_replicas_that_take_a_stream_in_any_order_make_one_unbroken_chain(
    database: Database,
) -> None:
    draw = random.Random(7)
    deliveries = [delivery(seq) for seq in range(1, 601)]
    deliveries += draw.sample(deliveries, 100)  # delivered twice
    draw.shuffle(deliveries)
    batches = [deliveries[at : at + 20] for at in range(0, len(deliveries), 20)]

    async def replica(mine: list[list[Delivery]]) -> None:
        for batch in mine:
            await keep(database, *batch)

    await asyncio.gather(*(replica(batches[n::4]) for n in range(4)))
    assert await head(database) == 600
    rows = await database.fetch("SELECT hash FROM links ORDER BY stream_seq")
    assert [row["hash"] for row in rows] == await recomputed(database, "ORDERS")


async def test_a_gap_that_lasts_is_measured_and_warned_of_once(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    await keep(database, delivery(1), delivery(3), delivery(4))
    await database.execute("UPDATE entries SET received_at = now() - interval '1 minute'")
    warned: set[str] = set()
    for _ in range(2):
        await watch_chains(database, STREAM_NAMES, warned)
    assert warned == {"ORDERS"}
    assert capsys.readouterr().out.count("waits at a gap") == 1
    behind = REGISTRY.get_sample_value("ironcart_audit_chain_behind", {"stream": "ORDERS"})
    waiting_s = REGISTRY.get_sample_value("ironcart_audit_gap_seconds", {"stream": "ORDERS"})
    assert behind == 3
    assert waiting_s is not None
    assert waiting_s > 59

    await keep(database, delivery(2))
    await watch_chains(database, STREAM_NAMES, warned)
    assert warned == set()
    assert REGISTRY.get_sample_value("ironcart_audit_gap_seconds", {"stream": "ORDERS"}) == 0


async def test_what_a_late_message_set_free_is_linked_without_another_message(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ironcart.services.audit.handlers.chain.STORED_ENTRIES_LINKED_MAX", 10)
    monkeypatch.setattr("ironcart.services.audit.handlers.chain.STORED_ENTRIES_READ_MAX", 10)
    await keep(database, *(delivery(seq) for seq in range(2, 60)))
    await keep(database, delivery(1))
    assert await head(database) < 59
    for _ in range(6):
        await watch_chains(database, STREAM_NAMES, set())
    assert await head(database) == 59


@pytest.mark.parametrize(
    ("tampering", "first_bad"),
    [
        ("UPDATE entries SET body = 'x' WHERE stream_seq = 5", 5),
        ("UPDATE entries SET event_id = 'x' WHERE stream_seq = 5", 5),
        ("UPDATE links SET hash = sha256('x') WHERE stream_seq = 5", 5),
        ("DELETE FROM entries WHERE stream_seq = 5", 5),
        ("DELETE FROM links WHERE stream_seq = 5", 5),
        ("DELETE FROM entries WHERE stream_seq = 5; DELETE FROM links WHERE stream_seq = 5", 5),
        ("DELETE FROM entries WHERE stream_seq = 9", 9),
        ("DELETE FROM entries WHERE stream_seq < 5; DELETE FROM links WHERE stream_seq < 5", 1),
        ("DELETE FROM entries", 1),
    ],
)
async def test_tampering_is_found_where_it_begins(
    database: Database, tampering: str, first_bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ironcart.services.audit.handlers.chain.VERIFIED_AT_ONCE_MAX", 3)
    await keep(database, *(delivery(seq) for seq in range(1, 10)), delivery(11))
    sound = await verify(Store(database), "ORDERS")
    assert (sound.first_bad, sound.gap, sound.head_seq) == (None, 10, 9)
    assert (await verify(Store(database), "ORDERS", 6)).first_bad is None

    await database.execute(tampering)
    assert (await verify(Store(database), "ORDERS")).first_bad == first_bad


async def test_an_empty_trail_verifies(database: Database) -> None:
    async with serving("audit", endpoints(database, STREAM_NAMES)) as api:
        for each in (await api.get("/audit/verify"))["streams"]:
            assert each["verified"]
            assert each["head_hash"] == genesis(each["stream"]).hex()
        assert (await api.get("/audit/checkpoints"))["items"] == []
