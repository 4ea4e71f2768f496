"""The vault on a real Postgres: master keys are changed under work, and customers forgotten."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import structlog

from ironcart.cli import erase, provision, vault
from ironcart.cli.address import RUN_FILE
from ironcart.cli.vault import Where, rotate_customers
from ironcart.services.notifications.gateway import SecretBox
from ironcart.toolkit import vault as toolkit_vault
from ironcart.toolkit.database import Database
from ironcart.toolkit.deadletters import CustomerForgotten
from ironcart.toolkit.outcomes import Poison, Refused, Unavailable
from ironcart.toolkit.vault import Contact, Forgotten, MasterKeys, Sealed, Vault, new_master_key

OLD, NEW = new_master_key(), new_master_key()
CUSTOMERS = 1_200  # More than two pages.
SECRET = b"s" * 32


@dataclass(frozen=True)
class Base:
    """A database with a vault, and the services that come to it with several master keys."""

    url: str
    database: Database

    def vault(self, *master_keys: str) -> Vault:
        return Vault(self.database, *master_keys)

    @property
    def place(self) -> Where:
        return Where(vault_database_url=self.url, database_url=self.url)

    @property
    def erasing(self) -> erase.Where:
        return erase.Where(vault_database_url=self.url, database_url=self.url)

    async def forget(self, customer: str) -> erase.Found:
        return await erase._erase(self.erasing, CustomerForgotten(customer, "anna", "asked"))

    async def sql(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        return await self.database.fetch(statement, *arguments)


@pytest.fixture
async def base(database_url: str) -> AsyncIterator[Base]:
    for schema in ("vault", "orders", "notifications"):
        await provision._migrate(schema, database_url)
    database = Database(database_url, "vault", "test")
    yield Base(database_url, database)
    await database.close()


def contact(number: int) -> tuple[str, Contact]:
    return f"C-{number}", Contact(f"person{number}@shop.example", f"Person {number}")


async def sealed(keys: Vault, *numbers: int) -> list[tuple[str, str]]:
    contacts = [contact(number) for number in numbers]
    return [
        (customer, found.text)
        for (customer, _), found in zip(contacts, await keys.seal(contacts), strict=True)
        if isinstance(found, Sealed)
    ]


async def test_keys_are_wrapped_anew_while_services_work_and_the_old_one_can_go(
    base: Base,
) -> None:
    """A service that was started before still adds keys by the old master key meanwhile."""
    box = SecretBox(OLD)
    await base.sql(
        "INSERT INTO notifications.webhook_endpoints (endpoint_id, url, url_hash, events, secret)"
        " VALUES ('WHE-1', 'https://x.example', 'h', '{}', $1)",
        box.seal("WHE-1", SECRET),
    )
    known = await sealed(base.vault(OLD), *range(CUSTOMERS))
    before, after = base.vault(OLD, NEW), base.vault(NEW, OLD)
    rotating = asyncio.create_task(vault._rotate(base.place, (NEW, OLD)))
    number = CUSTOMERS
    while not rotating.done():
        known += await sealed(before, number) + await sealed(after, number + 1)
        number += 2
        assert await base.vault(OLD, NEW).decrypt(known[:1]) == [contact(0)[1]]
    assert await rotating == 0
    assert await vault._rotate(base.place, (NEW, OLD)) == 0

    found = await base.vault(NEW).decrypt(known)

    assert number > CUSTOMERS + 2
    assert found == [contact(each)[1] for each in range(number)]
    (row,) = await base.sql("SELECT secret FROM notifications.webhook_endpoints")
    assert SecretBox(NEW).open("WHE-1", row["secret"]) == SECRET
    with pytest.raises(Unavailable):
        box.open("WHE-1", row["secret"])
    with pytest.raises(Refused, match="IRONCART_MASTER_KEYS_OLD"):
        await base.vault(OLD).decrypt(known[:1])


async def test_a_key_that_none_opens_is_counted_and_left_as_it_is(base: Base) -> None:
    lost = await sealed(base.vault(new_master_key()), 1)
    fine = await sealed(base.vault(OLD), 2)

    assert await vault._rotate(base.place, (NEW, OLD)) == 1

    assert await base.vault(NEW).decrypt(fine) == [contact(2)[1]]
    (found,) = await base.vault(NEW, OLD).decrypt(lost)
    assert isinstance(found, Poison)


@pytest.mark.parametrize("bytes_left", [60, 2, 0])
async def test_a_damaged_key_is_one_customers_matter_and_is_said(
    base: Base, bytes_left: int
) -> None:
    known = await sealed(base.vault(OLD), 1, 2)
    junk = b"j" * bytes_left
    await base.sql("UPDATE keys SET wrapped = $1 WHERE customer_id = 'C-1'", junk)

    with structlog.testing.capture_logs() as said:
        damaged, fine = await base.vault(OLD).decrypt(known)
        (alone,) = await base.vault(OLD).decrypt(known[:1])

    assert fine == contact(2)[1]
    for each in (damaged, alone):
        assert isinstance(each, Poison)
        assert not isinstance(each, Forgotten)
    assert [(each["log_level"], each["customers"]) for each in said] == [("error", ["C-1"])] * 2
    assert await vault._rotate(base.place, (NEW, OLD)) == 1
    assert await base.sql("SELECT 1 FROM keys WHERE wrapped = $1", junk)


async def test_a_master_key_that_is_missing_is_told_from_damage_by_the_newest_keys(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that was not told of the new master key must not give customers' letters up."""
    monkeypatch.setattr(toolkit_vault, "ASKED_KEYS_MAX", 2)
    older = await sealed(base.vault(OLD), 1, 2)
    newer = await sealed(base.vault(NEW), 3)
    for number in (4, 5):
        newer += await sealed(base.vault(NEW), number)

    assert await base.vault(OLD).decrypt(older) == [contact(1)[1], contact(2)[1]]
    with pytest.raises(Refused, match="IRONCART_MASTER_KEYS_OLD"):
        await base.vault(OLD).decrypt(older + newer[-1:])
    with pytest.raises(Refused):
        await base.vault(new_master_key()).decrypt(older)


async def test_a_service_that_was_not_told_of_the_master_key_in_use_ends(base: Base) -> None:
    """Or it would wrap new customers' keys by one that is to be dropped."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await base.vault(NEW).watch()  # Nothing is kept yet: any key is right.
    known = await sealed(base.vault(OLD), 1, 2)

    with structlog.testing.capture_logs() as said:
        found = await base.vault(NEW).seal([contact(1), contact(3)])
    with pytest.raises(Refused, match="IRONCART_MASTER_KEYS_OLD"):
        async with asyncio.timeout(5):
            await base.vault(new_master_key()).watch()

    assert [type(each) for each in found] == [Poison, Sealed]
    assert [each["customers"] for each in said] == [["C-1"]]
    assert "IRONCART_MASTER_KEY" in said[0]["event"]
    assert await base.vault(OLD).decrypt(known) == [contact(1)[1], contact(2)[1]]


async def test_who_missed_a_rotation_says_so_although_all_that_is_new_is_its_own(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolkit_vault, "ASKED_KEYS_MAX", 2)
    monkeypatch.setattr(toolkit_vault, "WATCH_EVERY_S", 0.01)
    await sealed(base.vault(OLD), 1, 2)
    assert await vault._rotate(base.place, (NEW, OLD)) == 0
    await sealed(base.vault(OLD), 3, 4, 5)

    with structlog.testing.capture_logs() as said, pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await base.vault(OLD).watch()

    (once,) = said
    assert "IRONCART_MASTER_KEYS_OLD" in once["error"]


async def test_one_key_that_is_none_ends_nobody(base: Base) -> None:
    await base.sql("INSERT INTO keys (customer_id, wrapped) VALUES ('C-bad', '\\x00')")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await base.vault(OLD).watch()


def test_a_key_beside_that_of_a_running_folder_rotates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / RUN_FILE).write_text("{}")
    (tmp_path / vault.MASTER_KEY_FILE).write_text(OLD + "\n")
    monkeypatch.setenv("IRONCART_MASTER_KEY", NEW)

    with pytest.raises(Refused, match=r"not the key in .*master.key.*: put"):
        vault.rotate(tmp_path)


async def test_rotating_again_changes_nothing(base: Base) -> None:
    await sealed(base.vault(OLD), 1, 2, 3)
    first = await rotate_customers(base.database, MasterKeys(NEW, OLD))

    second = await rotate_customers(base.database, MasterKeys(NEW, OLD))

    assert (first.seen, first.wrapped) == (3, 3)
    assert (second.seen, second.wrapped) == (3, 0)


async def test_who_is_forgotten_while_keys_are_wrapped_stays_forgotten(base: Base) -> None:
    known = await sealed(base.vault(OLD), 1)
    (row,) = await base.sql("SELECT customer_id, wrapped FROM keys")
    await base.forget("C-1")

    written = await vault._write(base.database, vault._REWRAP, [(*row, b"fresh")])

    assert written == 0
    (found,) = await base.vault(OLD).decrypt(known)
    assert isinstance(found, Forgotten)


async def test_erasing_only_looks_until_it_is_told_to_and_is_told_once(base: Base) -> None:
    known = await sealed(base.vault(OLD), 1)

    looked = await erase._look(base.erasing, "C-1")
    kept = await base.vault(OLD).decrypt(known)
    done = await base.forget("C-1")
    again = await base.forget("C-1")

    assert kept == [contact(1)[1]]
    assert looked == done
    assert done.since is not None
    assert again.since is None
    assert isinstance((await base.vault(OLD).decrypt(known))[0], Forgotten)
    rows = await base.sql("SELECT type, subject, version FROM orders.events")
    assert [tuple(row) for row in rows] == [
        ("CustomerForgotten", "deadletters.customer_forgotten", 1)
    ]


async def test_who_comes_back_gets_a_new_key_which_a_service_with_the_old_one_finds(
    base: Base,
) -> None:
    remembers = base.vault(OLD)
    before = await sealed(remembers, 1)
    await base.forget("C-1")
    assert await remembers.decrypt(before) == [contact(1)[1]], "for seconds, from memory"

    after = await sealed(base.vault(OLD), 1)

    assert await remembers.decrypt(after) == [contact(1)[1]]
    (found,) = await base.vault(OLD).decrypt(before)
    assert isinstance(found, Poison), "what was sealed before stays unreadable"


async def test_a_key_is_remembered_for_no_longer_than_promised(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolkit_vault, "CACHED_KEY_LIFE_S", 0.0)
    keys = base.vault(OLD)
    known = await sealed(keys, 1)
    await base.forget("C-1")

    assert isinstance((await keys.decrypt(known))[0], Forgotten)


async def test_a_customer_who_is_forgotten_while_an_order_is_taken_gets_a_key_all_the_same(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = base.vault(OLD)
    execute, forgotten = base.database.execute, list[erase.Found]()

    async def erased_at_once(statement: str, *arguments: object) -> str:
        done = await execute(statement, *arguments)
        if not forgotten:
            forgotten.append(await base.forget("C-1"))
        return done

    monkeypatch.setattr(base.database, "execute", erased_at_once)

    known = await sealed(keys, 1)

    assert forgotten[0].since is not None
    assert await base.vault(OLD).decrypt(known) == [contact(1)[1]]
