"""One charge for an order, whatever becomes of calls, answers, keys and databases."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from notifications_audit_parts import until
from payments_parts import (
    cancelled,
    fresh_database,
    held_up,
    network,
    new_order,
    paid,
    reserved,
    till,
)
from sandbox_parts import call, fault, heal, running_sandbox

from ironcart.embedded.postgres import Postgres
from ironcart.embedded.sandbox.server import SandboxServer
from ironcart.services.payments.gateway import client
from ironcart.services.payments.store import Store

LATER_S = 7_200


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxServer]:
    with running_sandbox(Path(tmp_path_factory.mktemp("sandbox"))) as server:
        yield server


@pytest.fixture(scope="module")
def payments_url(postgres: Postgres, postgres_url: str) -> str:
    """A database for the tests of this module; it goes with the server."""

    return fresh_database(postgres, postgres_url, "payments_charging")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CALL_TIMEOUT_S", 0.3)


async def expire_keys(sandbox: SandboxServer) -> None:
    await call(sandbox, "POST", "sandbox/keys/expire")


@pytest.mark.parametrize("mode", ["down", "error", "hang", "lose_response"])
async def test_a_fault_and_expired_keys_lead_to_one_capture(
    payments_url: str, sandbox: SandboxServer, mode: str
) -> None:
    async with till(payments_url, sandbox) as payments:
        order_id = new_order()
        await fault(
            sandbox, mode, rate=0.6, seconds=60, **({"begun": True} if mode == "error" else {})
        )
        try:
            await payments.deliver(reserved(order_id))

            async def tried() -> bool:
                await expire_keys(sandbox)
                hits = (await call(sandbox, "GET", "sandbox/faults"))["hits"][mode]
                return bool(hits >= 2) or (await payments.payment(order_id)).state == "succeeded"

            await until(tried)
        finally:
            await heal(sandbox)
        await payments.ended(order_id)

        assert await payments.captured(order_id) == (1, 0)
        assert await payments.said(order_id) == ["PaymentSucceeded"]


async def test_a_confirmation_that_arrives_after_its_time_out_takes_nothing_more(
    payments_url: str, sandbox: SandboxServer
) -> None:
    async with held_up(payments_url, sandbox, "/confirm") as (way, payments, order_id):
        await payments.ended(order_id)
        await expire_keys(sandbox)
        await way.release()

        assert await payments.captured(order_id) == (1, 0)


async def test_a_creation_that_arrives_after_its_time_out_leaves_an_orphan_for_the_reconciler(
    payments_url: str, sandbox: SandboxServer
) -> None:
    async with held_up(payments_url, sandbox, "/v1/payment_intents") as (way, payments, order_id):
        await payments.ended(order_id)
        await expire_keys(sandbox)
        await way.release()
        assert [c["status"] for c in await payments.charges(order_id)] == [
            "succeeded",
            "requires_confirmation",
        ]
        young = await payments.reconcile(int(time.time()))
        assert ("orphan", order_id) not in payments.found
        await payments.reconcile(int(time.time()) + LATER_S)
        statuses = [c["status"] for c in await payments.charges(order_id)]

    assert statuses == ["succeeded", "canceled"]
    assert ("orphan", order_id) in payments.found
    assert young.watermark <= int(time.time())


async def test_a_cancellation_against_a_confirmation_in_flight_keeps_no_money(
    payments_url: str, sandbox: SandboxServer
) -> None:
    async with held_up(payments_url, sandbox, "/confirm") as (way, payments, order_id):
        await way.caught()
        await payments.deliver(cancelled(order_id))
        await way.release()  # It arrives before the cancel of the intent does.
        payment = await payments.ended(order_id)

        assert payment.state == "refunded"
        assert await payments.captured(order_id) == (1, 2_000)
        assert await payments.said(order_id) == ["PaymentSucceeded", "PaymentRefunded"]


async def test_an_outage_of_the_gateway_does_not_delay_a_cancellation_before_the_charge(
    payments_url: str, sandbox: SandboxServer
) -> None:
    async with till(payments_url, sandbox, failures_max=0) as payments:
        order_id, first = new_order(), new_order()
        await fault(sandbox, "down", seconds=60)
        try:
            await payments.deliver(reserved(first))

            async def opened() -> bool:
                row = await payments.database.fetchrow(
                    "SELECT 1 FROM jobs WHERE key = $1 AND lease IS NULL", first
                )
                return row is not None

            await until(opened)
            await payments.deliver(reserved(order_id))
            await payments.deliver(cancelled(first))
            await payments.deliver(cancelled(order_id))
            states = [(await payments.payment(each)).state for each in (first, order_id)]
        finally:
            await heal(sandbox)

        assert states[1] == "voided"
        assert (await payments.ended(first)).state == "voided"
        assert await payments.captured(order_id) == (0, 0)


async def test_an_intent_that_somebody_else_cancels_again_and_again_is_made_anew_with_pauses(
    payments_url: str, sandbox: SandboxServer
) -> None:
    async with network(sandbox) as way, till(payments_url, sandbox, base=way.url) as payments:
        order_id, gone = new_order(), set[str]()

        def fresh(path: str) -> bool:
            return path.endswith("/confirm") and len(gone) < 2 and path.split("/")[-2] not in gone

        way.holding = fresh
        await payments.deliver(reserved(order_id))
        for made in (0, 1):

            async def stored(made: int = made) -> str | None:
                row = await payments.payment(order_id)
                return row.intent_id if row.generation == made else None

            intent_id = await until(stored)
            await payments.gateway.cancel(intent_id, 0)
            gone.add(intent_id)
        payment = await payments.ended(order_id)

        assert (payment.state, payment.generation) == ("succeeded", 2)
        charges = await payments.charges(order_id)
        assert [c["status"] for c in charges] == ["canceled", "canceled", "succeeded"]
        row = await payments.database.fetchrow("SELECT 1 FROM jobs WHERE key = $1", order_id)
        assert row is None


async def test_a_payment_that_the_database_has_forgotten_is_found_at_the_gateway(
    payments_url: str, sandbox: SandboxServer
) -> None:
    async with till(payments_url, sandbox) as payments:
        paid_before, open_before = new_order(), new_order()
        await payments.deliver(reserved(paid_before))
        kept = await payments.ended(paid_before)
        other = await payments.gateway.create(
            order_id=open_before,
            amount_minor=2_000,
            currency="EUR",
            method="pm_card_visa",
            generation=7,
            attempts=0,
        )
        await payments.forget(paid_before)
        await payments.deliver(reserved(paid_before), reserved(open_before), recovering=True)
        found, opened = await payments.ended(paid_before), await payments.ended(open_before)

        assert (found.state, found.intent_id) == ("succeeded", kept.intent_id)
        assert await payments.captured(paid_before) == (1, 0)
        assert opened.intent_id != other.intent_id  # type: ignore[union-attr]
        charges = await payments.charges(open_before)
        assert [c["status"] for c in charges] == ["canceled", "succeeded"]


async def test_a_cancellation_of_an_order_that_the_database_has_forgotten_gives_its_money_back(
    payments_url: str, sandbox: SandboxServer
) -> None:
    async with till(payments_url, sandbox) as payments:
        forgotten, unheard_of = new_order(), new_order()
        await payments.deliver(reserved(forgotten))
        await payments.ended(forgotten)
        await payments.forget(forgotten)
        await payments.deliver(cancelled(forgotten), cancelled(unheard_of), recovering=True)
        await payments.ended(forgotten)
        await payments.ended(unheard_of)

        assert await payments.captured(forgotten) == (1, 2_000)
        assert await payments.said(forgotten) == ["PaymentSucceeded", "PaymentRefunded"]
        assert await payments.said(unheard_of) == ["PaymentVoided"]


async def test_a_charge_marked_after_a_restore_is_swept_before_anything_is_sent(
    payments_url: str, sandbox: SandboxServer
) -> None:
    async with held_up(payments_url, sandbox, "/confirm") as (way, payments, order_id):
        await way.caught()
        before = (await payments.payment(order_id)).intent_id
        # The row as an older database has it: no intent yet; the confirmation arrives meanwhile.
        await payments.database.execute(
            "UPDATE payments SET intent_id = NULL WHERE order_id = $1", order_id
        )
        async with payments.database.acquire() as connection:
            await Store(connection).mark_recovering()
        await way.release()
        payment = await payments.ended(order_id)

        assert (payment.state, payment.intent_id) == ("succeeded", before)
        assert not payment.recovering
        assert paid(await payments.charges(order_id)) == [before]
