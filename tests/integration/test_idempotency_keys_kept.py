"""How idempotency keys rest in tables: as digests, and what older versions kept is understood."""

import hashlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal

import asyncpg
import pytest

from ironcart.cli import provision
from ironcart.events import Item, subjects_of
from ironcart.services.orders.handlers.accept import Answer, KeyReused, Request, Verdict, accept
from ironcart.services.orders.handlers.check import Draft
from ironcart.services.payments.store import RefundStore
from ironcart.toolkit.database import Database
from ironcart.toolkit.envelope import encode_json
from ironcart.toolkit.history import Cause, History
from ironcart.toolkit.telemetry import context
from ironcart.toolkit.vault import Contact, Vault, new_master_key

KEY = "order of anna@shop.example"
CALLER = "shop"
MASTER_KEY = new_master_key()
NAMES = (f"ORD-{number}" for number in itertools.count())


@dataclass
class Base:
    """The tables of orders and of the vault."""

    orders: Database
    vault: Database

    async def place(self, email: str, key: str = KEY) -> Verdict:
        trace = context({}, None)
        request = Request(draft(email), CALLER, key, Cause(trace.trace_id, trace))
        (verdict,) = await accept(
            [request],
            database=self.orders,
            vault=Vault(self.vault, MASTER_KEY),
            history=History("orders", subjects_of("orders")),
            publish=lambda _: None,
            new_id=lambda: next(NAMES),
        )
        return verdict

    async def kept(self) -> list[asyncpg.Record]:
        return await self.orders.fetch("SELECT key, fingerprint FROM idempotency_keys")


@pytest.fixture
async def base(database_url: str) -> AsyncIterator[Base]:
    for schema in ("vault", "orders"):
        await provision._migrate(schema, database_url)
    found = Base(Database(database_url, "orders", "test"), Database(database_url, "vault", "test"))
    yield found
    await found.orders.close()
    await found.vault.close()


def draft(email: str) -> Draft:
    items = (Item("SKU-1", 1, Decimal("1.00")),)
    return Draft("C-1", "EUR", 100, items, None, Contact(email, "Anna"))


def former(email: str) -> bytes:
    """A fingerprint as it was made once."""
    return hashlib.sha256(encode_json(draft(email))).digest()


async def test_a_key_rests_as_a_digest_and_its_contact_as_a_mark(base: Base) -> None:
    first = await base.place("anna@shop.example")
    again = await base.place("anna@shop.example")
    other = await base.place("bert@shop.example")

    assert isinstance(first, Answer)
    assert again == Answer(first.order_id, first.body, replayed=True)
    assert other == KeyReused()
    (row,) = await base.kept()
    digest = hashlib.sha256(f"{CALLER}\n{KEY}".encode()).hexdigest()
    assert row["key"] == f"\x01{digest}"
    assert row["fingerprint"] != former("anna@shop.example")
    (event,) = await base.orders.fetch("SELECT body FROM events")
    assert former("anna@shop.example").hex().encode() not in event["body"]


async def test_a_key_that_an_older_version_kept_is_understood(base: Base) -> None:
    first = await base.place("anna@shop.example")
    await base.orders.execute(
        "UPDATE idempotency_keys SET key = $1, fingerprint = $2", KEY, former("anna@shop.example")
    )

    again = await base.place("anna@shop.example")
    other = await base.place("bert@shop.example")

    assert isinstance(first, Answer)
    assert again == Answer(first.order_id, first.body, replayed=True)
    assert other == KeyReused()
    assert len(await base.kept()) == 1


async def test_a_contact_of_who_was_forgotten_cannot_be_tried_out_by_its_mark(base: Base) -> None:
    await base.place("anna@shop.example")
    await base.vault.execute("DELETE FROM keys")

    assert await base.place("anna@shop.example") == KeyReused()


async def test_a_refunds_key_rests_as_a_digest_too(database_url: str) -> None:
    await provision._migrate("payments", database_url)
    connection = await asyncpg.connect(database_url, server_settings={"search_path": "payments"})
    older = "older key of anna@shop.example"
    await connection.execute(
        "INSERT INTO refunds (refund_id, order_id, amount_minor, reason, caller, key, fingerprint,"
        " answer) VALUES ('r', 'o', 1, '', $1, $2, 'f', 'a')",
        CALLER,
        older,
    )
    store = RefundStore(connection)  # type: ignore[arg-type] # it needs no more than this one has

    assert await store.answered(CALLER, older) == (b"f", b"a")
    assert await store.answered(CALLER, KEY) is None
    assert await store.answered("another", older) is None
    await connection.close()
