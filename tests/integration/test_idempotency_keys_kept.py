"""How idempotency keys rest in tables: as digests, and what older versions kept is understood."""

import hashlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal

import asyncpg
import pytest

from ironcart.cli import provision
from ironcart.events import OWNERS, Item, subjects_of
from ironcart.services.orders.fold import fold
from ironcart.services.orders.handlers.accept import (
    Answer,
    KeyReused,
    Request,
    Unsealed,
    Verdict,
    accept,
)
from ironcart.services.orders.handlers.check import Draft
from ironcart.services.payments.store import RefundStore
from ironcart.toolkit.database import Database
from ironcart.toolkit.envelope import encode_json
from ironcart.toolkit.history import Cause, History
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.recovery import own_fact
from ironcart.toolkit.telemetry import context
from ironcart.toolkit.vault import Contact, Vault, new_master_key

KEY = "order of anna@shop.example"
CALLER = "shop"
MASTER_KEY, NEXT_KEY = new_master_key(), new_master_key()
EMAIL = "anna@shop.example"
NAMES = (f"ORD-{number}" for number in itertools.count())


@dataclass
class Base:
    """The tables of orders and of the vault."""

    orders: Database
    vault: Database

    async def place(
        self,
        email: str,
        key: str = KEY,
        *,
        units: int = 1,
        masters: tuple[str, ...] = (MASTER_KEY,),
    ) -> Verdict:
        (verdict,) = await self.place_all((draft(email, units), key), masters=masters)
        return verdict

    async def place_all(
        self, *asked: tuple[Draft, str | None], masters: tuple[str, ...] = (MASTER_KEY,)
    ) -> list[Verdict]:
        """Accept one batch, as a service that was just started."""
        trace = context({}, None)
        cause = Cause(trace.trace_id, trace)
        return await accept(
            [Request(draft, CALLER, key, cause) for draft, key in asked],
            database=self.orders,
            vault=Vault(self.vault, *masters),
            history=History("orders", subjects_of("orders")),
            publish=lambda _: None,
            new_id=lambda: next(NAMES),
        )

    async def forget(self) -> None:
        await self.vault.execute("DELETE FROM keys")

    async def has_keys(self) -> bool:
        return bool(await self.vault.fetch("SELECT 1 FROM keys"))

    async def damage(self) -> None:
        await self.vault.execute("UPDATE keys SET wrapped = $1", b"\0" * 60)

    async def count(self) -> int:
        (row,) = await self.orders.fetch("SELECT count(*) FROM orders")
        found: int = row[0]
        return found

    async def rebuild(self) -> None:
        """Lose the tables, and put them together again from what was told."""
        kinds = {subject: kind for kind, subject in OWNERS["orders"][1].items()}
        rows = await self.orders.fetch("SELECT subject, body FROM events ORDER BY aggregate_id")
        found = [own_fact(kinds, row["subject"], row["body"], 1) for row in rows]
        await self.orders.execute("TRUNCATE orders, idempotency_keys")
        async with self.orders.transaction() as connection:
            await fold([fact for fact in found if fact is not None], connection)

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


def draft(email: str, units: int = 1, customer: str = "C-1") -> Draft:
    items = (Item("SKU-1", units, Decimal("1.00")),)
    return Draft(customer, "EUR", 100 * units, items, None, Contact(email, "Anna"))


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


async def test_a_retry_after_the_customer_was_forgotten_is_the_same_order_and_makes_no_key(
    base: Base,
) -> None:
    """Nobody can compare the contact any more, nor try it out by its mark."""
    first = await base.place(EMAIL)
    assert isinstance(first, Answer)
    await base.forget()

    assert await base.place(EMAIL) == Answer(first.order_id, first.body, replayed=True)
    assert await base.place("bert@shop.example") == await base.place(EMAIL)
    assert await base.place(EMAIL, units=2) == KeyReused()
    assert (await base.count(), await base.has_keys()) == (1, False)


async def test_who_was_forgotten_and_came_back_retries_older_and_newer_orders(base: Base) -> None:
    first = await base.place(EMAIL)
    await base.forget()
    second = await base.place(EMAIL, "another")
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)

    assert await base.place(EMAIL) == Answer(first.order_id, first.body, replayed=True)
    assert await base.place(EMAIL, units=2) == KeyReused()
    assert await base.place(EMAIL, "another") == Answer(second.order_id, second.body, replayed=True)
    assert await base.place("bert@shop.example", "another") == KeyReused()
    assert await base.count() == 2


async def test_a_retry_needs_no_customers_key_that_can_be_used(base: Base) -> None:
    first = await base.place(EMAIL)
    assert isinstance(first, Answer)
    again = Answer(first.order_id, first.body, replayed=True)
    await base.damage()

    verdicts = await base.place_all(
        (draft(EMAIL), "new"),
        (draft(EMAIL), KEY),
        (draft("carl@shop.example", customer="C-2"), "other"),
        (draft(EMAIL, 2), KEY),
        (draft(EMAIL), None),
        (draft(EMAIL), KEY),
    )

    assert verdicts[:2] == [Unsealed(), again]
    assert isinstance(verdicts[2], Answer)
    assert verdicts[3:] == [KeyReused(), Unsealed(), again]
    assert await base.count() == 2


async def test_a_key_makes_one_order_through_a_rebuild_a_rotation_and_an_erase(base: Base) -> None:
    first = await base.place(EMAIL)
    assert isinstance(first, Answer)
    again = Answer(first.order_id, first.body, replayed=True)
    rotated = (NEXT_KEY, MASTER_KEY)

    assert await base.place(EMAIL, masters=rotated) == again
    await base.rebuild()
    assert await base.place(EMAIL, masters=rotated) == again
    assert await base.place("bert@shop.example", masters=rotated) == KeyReused()
    assert await base.place(EMAIL, masters=(NEXT_KEY,)) == again, "rotated without the old one"
    await base.forget()
    assert await base.place(EMAIL) == again
    await base.rebuild()
    assert await base.place(EMAIL) == again
    assert await base.place(EMAIL, units=2) == KeyReused()
    assert (await base.count(), await base.has_keys()) == (1, False)


async def test_a_retry_of_who_was_forgotten_finds_a_key_of_an_older_version(base: Base) -> None:
    first = await base.place(EMAIL)
    assert isinstance(first, Answer)
    await base.orders.execute(
        "UPDATE idempotency_keys SET key = $1, fingerprint = $2", KEY, former(EMAIL)
    )
    await base.forget()

    assert await base.place(EMAIL) == Answer(first.order_id, first.body, replayed=True)
    assert await base.place(EMAIL, units=2) == KeyReused()
    assert (await base.count(), len(await base.kept()), await base.has_keys()) == (1, 1, False)


async def test_nothing_is_accepted_that_cannot_be_answered(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request without a key shares its batch with a repeat for which the vault does not answer:
    denied after its commit, it would be sent again."""
    await base.place(EMAIL)

    async def away(*_: object) -> list[Contact]:
        raise Unavailable("vault: away")

    monkeypatch.setattr(Vault, "decrypt", away)
    with pytest.raises(Unavailable):
        await base.place_all((draft(EMAIL), None), (draft("bert@shop.example"), KEY))

    assert await base.count() == 1


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
