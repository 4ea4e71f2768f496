"""`ironcart erase`: a customer is forgotten while an order of theirs is on its way."""

import asyncio
import secrets

import asyncpg
import typer
from typer.testing import CliRunner, Result

from ironcart.cli.erase import aggregate_of, erase
from ironcart.toolkit.outcomes import Refused
from ironcart.toolkit.vault import CACHED_KEY_LIFE_S
from shopping import Shop, order, until

SLOW_S = 20


async def ask(shop: Shop, *arguments: str) -> Result:
    """Run `ironcart erase`, without a process of its own, which takes most of a command's time."""
    app = typer.Typer()
    app.command()(erase)
    whole = [*arguments, "--data", str(shop.system.folder)]
    return await asyncio.to_thread(CliRunner().invoke, app, whole)


async def has_key(shop: Shop, customer: str) -> bool:
    connection = await asyncpg.connect(shop.system.run["postgres"]["url"])
    try:
        query = "SELECT EXISTS (SELECT 1 FROM vault.keys WHERE customer_id = $1)"
        found: bool = await connection.fetchval(query, customer)
        return found
    finally:
        await connection.close()


async def mails(shop: Shop, order_id: str) -> list[tuple[str, str | None]]:
    found = await shop.get("notifications", f"/notifications?order_id={order_id}")
    return [(row["state"], row["reason"]) for row in found["items"] if row["channel"] == "mail"]


async def test_an_order_in_flight_ends_without_a_mail_and_the_trail_says_who_forgot_whom(
    shop: Shop,
) -> None:
    customer, sku = f"C-{secrets.token_hex(6)}", await shop.stocked()
    email = f"{customer.lower()}@shop.example"
    await shop.fault(mode="slow", delay_s=3, seconds=SLOW_S)
    order_id = await shop.place(sku, customer_id=customer, email=email)

    looked = await ask(shop, customer)
    kept = await has_key(shop, customer)
    done = await ask(shop, customer, "--yes", "--by", "anna", "--why", "asked by letter")
    again = await ask(shop, customer, "--yes")
    await shop.heal()

    assert kept
    assert "would be destroyed" in looked.output
    assert "1 orders in flight go on, and end without a mail" in done.output
    assert "no key is kept" in again.output
    assert (looked.exit_code, done.exit_code, again.exit_code) == (0, 0, 0)
    assert not await has_key(shop, customer)
    assert (await shop.ended(order_id))["status"] == "confirmed"

    async def settled() -> bool:
        return await mails(shop, order_id) == [("failed", "forgotten")]

    await until(settled)
    assert not await shop.get("sandbox", f"/sandbox/mail?order_id={order_id}")

    async def told() -> bool:
        return await shop.audited(aggregate_of(customer)) == ["CustomerForgotten"]

    await until(told)


async def test_who_was_forgotten_and_comes_back_is_written_to_again(shop: Shop) -> None:
    customer, sku = f"C-{secrets.token_hex(6)}", await shop.stocked()
    email = f"{customer.lower()}@shop.example"

    async def mailed() -> bool:
        """Place an order; whether its end was told by mail."""
        order_id = await shop.place(sku, customer_id=customer, email=email)

        async def settled() -> bool:
            return bool(found := await mails(shop, order_id)) and found[0][0] != "due"

        await until(settled)
        return await mails(shop, order_id) == [("sent", None)]

    assert await mailed()
    assert (await ask(shop, customer, "--yes")).exit_code == 0

    async def welcome() -> bool:
        """Whether a new key was made, as soon as the old one is in nobody's memory, and served."""
        return await mailed() and await has_key(shop, customer)

    await until(welcome)


async def test_a_retry_of_who_was_forgotten_is_answered_with_its_order(shop: Shop) -> None:
    customer, sku = f"C-{secrets.token_hex(6)}", await shop.stocked()
    email, key = f"{customer.lower()}@shop.example", secrets.token_hex(8)
    asked = order(sku, customer_id=customer, email=email)
    first = await shop.ask("POST", "orders", "/orders", asked, Idempotency_Key=key)
    assert (await ask(shop, customer, "--yes")).exit_code == 0
    await asyncio.sleep(CACHED_KEY_LIFE_S + 1)  # Nothing shows when a service forgets.

    assert first[0] == 202
    assert await shop.ask("POST", "orders", "/orders", asked, Idempotency_Key=key) == first
    assert not await has_key(shop, customer)


async def test_what_cannot_be_a_customers_id_is_refused(shop: Shop) -> None:
    done = await ask(shop, "anna@shop.example", "--yes")

    assert isinstance(done.exception, Refused)
    assert "a customer's id is 1 to 64 of" in str(done.exception)


async def test_a_reason_with_a_mail_address_in_it_is_refused(shop: Shop) -> None:
    done = await ask(shop, "C-1", "--yes", "--why", "asked by anna@shop.example")

    assert isinstance(done.exception, Refused)
    assert "leave mail addresses out of it" in str(done.exception)
