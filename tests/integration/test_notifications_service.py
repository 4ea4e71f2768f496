"""Notifications on a real broker, a real Postgres and a real mail catcher."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from notifications_audit_parts import TRACE_ID, Running, event, migrate, raw, running, until
from sandbox_parts import call, fault, heal, running_sandbox

from ironcart.embedded.nats_server import NatsServer
from ironcart.embedded.sandbox.server import SandboxServer
from ironcart.events import OrderCancelled, OrderConfirmed, OrderRejected
from ironcart.services.notifications.app import SERVICE, Settings
from ironcart.services.notifications.handlers.mail import Telling
from ironcart.services.notifications.store import Notice, Store, Told
from ironcart.toolkit.broker import Outgoing
from ironcart.toolkit.database import Database
from ironcart.toolkit.history import Cause, History
from ironcart.toolkit.resilience import Breaker
from ironcart.toolkit.telemetry import context
from ironcart.toolkit.vault import Contact, Sealed, Vault, new_master_key

MASTER_KEY = new_master_key()
ADDRESS = "anna@b.example"
AMOUNT = Decimal("39.98")
BREAKER = "ironcart.services.notifications.gateway.mailer.Breaker"


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxServer]:
    with running_sandbox(tmp_path / "sandbox") as server:
        yield server


@pytest.fixture
async def vault(database_url: str) -> AsyncIterator[Vault]:
    await migrate(database_url, "vault")
    database = Database(database_url, "vault", "test")
    yield Vault(database, MASTER_KEY)
    await database.close()


@pytest.fixture
async def service(
    own_broker: NatsServer,
    database_url: str,
    vault: Vault,
    sandbox: SandboxServer,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Running]:
    monkeypatch.setattr(BREAKER, partial(Breaker, open_s=0.3))
    await migrate(database_url, "notifications")
    own = Settings(
        vault_database_url=database_url,
        master_key=MASTER_KEY,
        smtp_url=f"smtp://{sandbox.smtp}",
    )
    async with running(SERVICE, own, own_broker.url, database_url) as found:
        yield found


async def sealed(vault: Vault, customer: str = "C-1", address: str = ADDRESS) -> str:
    (found,) = await vault.seal([(customer, Contact(address, "Anna"))])
    assert isinstance(found, Sealed)
    return found.text


async def ended(service: Running, count: int) -> list[dict[str, Any]]:
    """The API's items, once this many are there and none is due."""

    async def look() -> list[dict[str, Any]] | None:
        items: list[dict[str, Any]] = (await service.api.get("/notifications?limit=500"))["items"]
        settled = [item for item in items if item["state"] != "due"]
        return items if len(settled) == len(items) == count else None

    found: list[dict[str, Any]] = await until(look)
    return found


async def facts(service: Running) -> list[dict[str, Any]]:
    rows = await service.database.fetch("SELECT body FROM events ORDER BY aggregate_id, version")
    return [json.loads(row["body"]) for row in rows]


async def mails(sandbox: SandboxServer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await call(sandbox, "GET", "sandbox/mail")
    return found


def confirmed(order_id: str = "ORD-1", contact: str | None = None) -> Outgoing:
    return event("orders", OrderConfirmed(order_id, "C-1", AMOUNT, "EUR", contact=contact))


async def test_a_confirmed_orders_customer_is_told_once_and_the_world_hears_of_it(
    service: Running, vault: Vault, sandbox: SandboxServer
) -> None:
    contact = await sealed(vault)
    first = confirmed(contact=contact)
    again = Outgoing("another-message-id", first.subject, first.body, first.headers)
    other = event("orders", OrderConfirmed("ORD-1", "C-1", AMOUNT, "EUR", contact=contact), 3)
    await service.publish([first, again, other])
    (item,) = await ended(service, 1)

    (mail,) = await mails(sandbox)
    assert (mail["to"], mail["order_id"]) == (ADDRESS, "ORD-1")
    assert mail["message_id"] == item["message_id"]
    letter = await call(sandbox, "GET", f"sandbox/mail/{mail['message_id']}")
    assert "39.98 EUR" in letter["text"]
    assert "39.98 EUR" in letter["html"]

    assert (item["state"], item["template"], item["reason"]) == ("sent", "confirmed", None)
    (fact,) = await facts(service)
    assert fact["type"] == "NotificationSent"
    assert (fact["aggregate_id"], fact["version"]) == ("ORD-1", 1)
    assert fact["trace_id"] == TRACE_ID
    assert fact["causation_id"] == json.loads(first.body)["id"]
    assert fact["data"]["recipient_hash"] == item["recipient_hash"] != ""
    assert await until(lambda: published(service)) == 1
    assert await service.database.fetch("SELECT * FROM jobs") == []


async def published(service: Running) -> int:
    return await service.last_seq("NOTIFICATIONS")


async def test_no_address_is_kept_or_shown_or_logged(
    service: Running, vault: Vault, capsys: pytest.CaptureFixture[str]
) -> None:
    await service.publish([confirmed(contact=await sealed(vault))])
    (item,) = await ended(service, 1)
    assert "anna" not in json.dumps(item)
    for table in ("notifications", "events", "jobs"):
        rows = await service.database.fetch(f"SELECT t::text AS text FROM {table} t")
        assert not any("anna" in row["text"].lower() for row in rows)
    assert all("anna" not in json.dumps(fact) for fact in await facts(service))
    said = capsys.readouterr()
    assert "anna" not in said.out + said.err


async def test_who_cannot_be_told_fails_for_good_with_the_reason(
    service: Running, vault: Vault, sandbox: SandboxServer, database_url: str
) -> None:
    good = await sealed(vault)
    other_customers = await sealed(vault, "C-2")
    forgotten = await sealed(vault, "C-3")
    no_address = await sealed(vault, address="not an address")
    keys = Database(database_url, "vault", "test")
    await keys.execute("DELETE FROM keys WHERE customer_id = 'C-3'")
    await keys.close()
    await service.publish(
        [
            confirmed("ORD-none"),
            confirmed("ORD-garbled", "no ciphertext"),
            confirmed("ORD-other", other_customers),
            confirmed("ORD-address", no_address),
            event(
                "orders",
                OrderRejected("ORD-forgotten", "C-3", AMOUNT, "EUR", "out_of_stock", forgotten),
            ),
        ]
    )
    await ended(service, 5)
    await fault(sandbox, "mail_reject")
    await service.publish(
        [event("orders", OrderCancelled("ORD-refused", "C-1", AMOUNT, "EUR", "customer", good))]
    )
    items = {item["order_id"]: item for item in await ended(service, 6)}
    assert {order_id: item["reason"] for order_id, item in items.items()} == {
        "ORD-none": "no_contact",
        "ORD-garbled": "unreadable_contact",
        "ORD-other": "unreadable_contact",
        "ORD-address": "unreadable_contact",
        "ORD-forgotten": "forgotten",
        "ORD-refused": "refused",
    }
    assert {item["state"] for item in items.values()} == {"failed"}
    assert await mails(sandbox) == []
    said = await facts(service)
    assert {fact["type"] for fact in said} == {"NotificationFailed"}
    reasons = {fact["aggregate_id"]: fact["data"]["reason"] for fact in said}
    assert reasons == {order_id: item["reason"] for order_id, item in items.items()}


async def test_a_customer_whose_key_is_damaged_does_not_keep_others_from_their_mail(
    service: Running, vault: Vault, sandbox: SandboxServer, database_url: str
) -> None:
    damaged, good = await sealed(vault, "C-2", "bea@shop.example"), await sealed(vault)
    keys = Database(database_url, "vault", "test")
    await keys.execute("UPDATE keys SET wrapped = 'junk' WHERE customer_id = 'C-2'")
    await keys.close()

    await service.publish(
        [
            event("orders", OrderRejected("ORD-2", "C-2", AMOUNT, "EUR", "out_of_stock", damaged)),
            confirmed(contact=good),
        ]
    )

    items = await ended(service, 2)
    assert {item["order_id"]: item["reason"] for item in items} == {
        "ORD-1": None,
        "ORD-2": "unreadable_contact",
    }
    assert [mail["to"] for mail in await mails(sandbox)] == [ADDRESS]


async def test_mail_waits_while_the_server_is_down_and_all_of_it_is_sent_after(
    service: Running, vault: Vault, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    contact = await sealed(vault)
    await fault(sandbox, "mail_down")
    orders = [f"ORD-{n}" for n in range(30)]
    await service.publish([confirmed(order_id, contact) for order_id in orders])

    async def failing() -> bool:
        rows = await service.database.fetch("SELECT count(*) AS n FROM jobs WHERE attempts > 0")
        return bool(rows[0]["n"] >= 6)

    await until(failing)
    ready = (await service.api.get("/notifications?order_id=ORD-0"))["items"]
    assert [item["state"] for item in ready] == ["due"]
    await heal(sandbox)
    items = await ended(service, 30)
    assert {item["state"] for item in items} == {"sent"}
    assert sorted(mail["order_id"] for mail in await mails(sandbox)) == sorted(orders)
    assert await service.last_seq("DEADLETTERS") == 0


async def test_garbage_is_parked_and_its_neighbours_are_told(
    service: Running, vault: Vault
) -> None:
    nan = confirmed("ORD-nan").body.replace(b"39.98", b'"NaN"')
    await service.publish(
        [
            raw("orders.confirmed", b"not json"),
            raw("orders.confirmed", nan),
            confirmed("ORD-good", await sealed(vault)),
            raw("orders.rejected", confirmed("ORD-elsewhere").body),
        ]
    )
    (item,) = await ended(service, 1)
    assert item["order_id"] == "ORD-good"
    assert await until(lambda: parked(service, 3)) == 3


async def parked(service: Running, count: int) -> int:
    found = await service.last_seq("DEADLETTERS")
    return found if found == count else 0


async def test_every_end_of_an_order_is_a_version_of_its_history(
    service: Running, vault: Vault
) -> None:
    contact = await sealed(vault)
    orders = [f"ORD-{n}" for n in range(60)]
    await service.publish(
        [
            end
            for order_id in orders
            for end in (
                confirmed(order_id, contact),
                event("orders", OrderCancelled(order_id, "C-1", AMOUNT, "EUR", "x", contact), 3),
                event("orders", OrderRejected(order_id, "C-1", AMOUNT, "EUR", "x", contact), 4),
            )
        ]
    )
    await ended(service, 180)
    rows = await service.database.fetch(
        "SELECT aggregate_id, array_agg(version ORDER BY version) AS versions FROM events"
        " GROUP BY aggregate_id"
    )
    assert {row["aggregate_id"] for row in rows} == set(orders)
    assert {tuple(row["versions"]) for row in rows} == {(1, 2, 3)}


async def test_two_replicas_that_settle_one_order_at_once_write_one_history(
    database_url: str,
) -> None:
    await migrate(database_url, "notifications")
    database = Database(database_url, "notifications", "test")
    history = History("notifications", SERVICE.subjects)
    telling = Telling(None, None, None, b"")  # type: ignore[arg-type] # settling needs none of it
    cause = Cause(TRACE_ID, context({}))
    notices = [
        Notice(f"ORD-{n}", template, "C-1", "1.00", "EUR", None, None, cause)
        for n in range(20)
        for template in ("confirmed", "rejected", "cancelled")
    ]

    async def settle(mine: list[Notice]) -> None:
        for notice in mine:
            # Rows may appear while somebody else settles the same order.
            await Store(database).add([notice])
            async with database.transaction() as connection:
                (settled,) = await telling.settle(
                    connection, [(notice, Told("", None, "no_contact"))]
                )
                await history.record(connection, [(fact, cause) for fact in settled.facts])

    await asyncio.gather(*(settle(notices[n::3]) for n in range(3)))
    rows = await database.fetch(
        "SELECT count(*) AS n, max(version) AS v FROM events GROUP BY aggregate_id"
    )
    assert {(row["n"], row["v"]) for row in rows} == {(3, 3)}
    again = [(notices[0], Told("", None, "refused"))]
    async with database.transaction() as connection:
        (lost,) = await telling.settle(connection, again)
    assert lost.facts == ()
    await database.close()


async def test_the_list_is_newest_first_in_pages_and_says_what_is_wrong_with_a_query(
    service: Running,
) -> None:
    await service.publish([confirmed(f"ORD-{n}") for n in range(7)])
    items = await ended(service, 7)
    assert [item["created_at"] for item in items] == sorted(
        (item["created_at"] for item in items), reverse=True
    )
    collected: list[Any] = []
    cursor = ""
    while cursor is not None:
        page = await service.api.get(f"/notifications?limit=3{cursor and '&cursor=' + cursor}")
        collected += page["items"]
        cursor = page["next_cursor"]
    assert collected == items
    one = await service.api.get("/notifications?order_id=ORD-3")
    assert [item["order_id"] for item in one["items"]] == ["ORD-3"]
    assert (await service.api.get("/notifications?order_id=ORD-none"))["items"] == []
    for query, pointer in (
        ("limit=501", "/limit"),
        ("cursor=x", "/cursor"),
        ("order_id=%00", "/order_id"),
        ("order_id=", "/order_id"),
    ):
        problem = await service.api.get(f"/notifications?{query}", 400)
        assert [each["pointer"] for each in problem["errors"]] == [pointer]
