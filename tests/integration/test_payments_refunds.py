"""Money that goes back, news from the gateway, and ledgers that are compared."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from notifications_audit_parts import until
from payments_parts import (
    SECRETS,
    Till,
    cancelled,
    fresh_database,
    network,
    new_order,
    reserved,
    till,
)
from sandbox_parts import call, confirm, create, fault, heal, running_sandbox, stripe_client

from ironcart.embedded.postgres import Postgres
from ironcart.embedded.sandbox.server import SandboxServer
from ironcart.embedded.sandbox.webhooks import sign
from ironcart.services.payments.gateway import client
from ironcart.services.payments.handlers import refunds

LATER_S = 7_200


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxServer]:
    with running_sandbox(Path(tmp_path_factory.mktemp("sandbox"))) as server:
        yield server


@pytest.fixture(scope="module")
def payments_url(postgres: Postgres, postgres_url: str) -> str:
    return fresh_database(postgres, postgres_url, "payments_refunds")


async def bought(payments: Till) -> str:
    """An order of 20.00 EUR that is paid."""
    order_id = new_order()
    await payments.deliver(reserved(order_id))
    await payments.ended(order_id)
    return order_id


async def refunded(payments: Till, order_id: str, body: Any = None, **headers: str) -> Any:
    """Ask for a refund; the payment once that is over."""
    path = f"/payments/{order_id}/refunds"
    status, answer = await payments.ask("POST", path, body, **headers)
    assert (status, answer["status"]) == (202, "op_refunding"), answer
    await payments.ended(order_id)
    return (await payments.ask("GET", f"/payments/{order_id}"))[1]


async def test_refunds_follow_each_other_until_everything_is_back(
    payments_url: str, sandbox: SandboxServer
) -> None:
    async with till(payments_url, sandbox) as payments:
        order_id = await bought(payments)
        first = await refunded(payments, order_id, {"amount": 5, "reason": "damaged"})
        second = await refunded(payments, order_id, {"amount": 0.01})
        last = await refunded(payments, order_id)
        path = f"/payments/{order_id}/refunds"
        nothing_left, _ = await payments.ask("POST", path)

        assert [each["refunded"] for each in (first, second, last)] == [5.0, 5.01, 20.0]
        assert last["status"] == "succeeded"
        assert nothing_left == 409
        assert await payments.captured(order_id) == (1, 2_000)
        assert await payments.said(order_id) == ["PaymentSucceeded", *["RefundIssued"] * 3]
        rows = await payments.database.fetch(
            "SELECT body FROM events WHERE aggregate_id = $1 AND type = 'RefundIssued'"
            " ORDER BY version",
            order_id,
        )
        amounts = [json.loads(row["body"])["data"]["amount"] for row in rows]
        assert amounts == [5.0, 0.01, 14.99]


async def test_a_key_is_one_refund_and_another_body_is_refused(
    payments_url: str, sandbox: SandboxServer
) -> None:
    async with till(payments_url, sandbox) as payments:
        order_id = await bought(payments)
        path, key = f"/payments/{order_id}/refunds", new_order()
        asked = [payments.ask("POST", path, {"amount": 5.0}, Idempotency_Key=key) for _ in range(5)]
        answers = await asyncio.gather(*asked)
        await payments.ended(order_id)
        headers = {"Idempotency_Key": f'"{key}"', "Content_Type": "application/json"}
        again = await payments.ask("POST", path, b'{"amount": 5.00}', **headers)
        other, _ = await payments.ask("POST", path, {"amount": 6}, Idempotency_Key=key)

        assert {status for status, _ in answers} == {202}
        assert all(answer == again for answer in answers)
        assert other == 422
        assert await payments.captured(order_id) == (1, 500)


async def test_a_refund_of_an_older_version_may_have_an_at_sign_when_it_is_asked_for_again(
    payments_url: str, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with till(payments_url, sandbox) as payments:
        order_id = await bought(payments)
        path, key = f"/payments/{order_id}/refunds", new_order()
        body = {"amount": 3, "reason": "call from x@y.example"}
        with monkeypatch.context() as older:
            older.setattr(refunds, "REASON_PATTERN", r"^[^\x00]{0,255}\Z")
            first = await payments.ask("POST", path, body, Idempotency_Key=key)
        await payments.ended(order_id)
        again = await payments.ask("POST", path, body, Idempotency_Key=key)
        new, _ = await payments.ask("POST", path, body, Idempotency_Key=new_order())

        assert first == again
        assert (first[0], new) == (202, 400)
        assert await payments.captured(order_id) == (1, 300)


REFUSED: list[tuple[Any, int, str | None]] = [
    ({"amount": 20.01}, 409, None),
    ({"amount": 0}, 400, "/amount"),
    ({"amount": -1}, 400, "/amount"),
    ({"amount": 5.001}, 400, "/amount"),
    ({"amount": "5"}, 400, "/amount"),
    ({"amount": None}, 400, "/amount"),
    (b'{"amount": 1e1}', 400, "/amount"),
    (b'{"amount": NaN}', 400, None),
    ({"reason": 1}, 400, "/reason"),
    ({"reason": "x" * 256}, 400, "/reason"),
    ({"reason": "call from x@y.example"}, 400, "/reason"),
    ({"amont": 1}, 400, "/amont"),
    ([], 400, ""),
    (b"{", 400, None),
]


async def test_a_refund_that_cannot_be_is_refused_and_points_at_why(
    payments_url: str, sandbox: SandboxServer
) -> None:
    async with till(payments_url, sandbox) as payments:
        order_id = await bought(payments)
        path, json_type = f"/payments/{order_id}/refunds", {"Content_Type": "application/json"}
        for body, status, pointer in REFUSED:
            headers = json_type if isinstance(body, bytes) else {}
            found, problem = await payments.ask("POST", path, body, **headers)
            assert (found, problem["status"]) == (status, status), body
            pointers = [fault["pointer"] for fault in problem.get("errors", [])]
            assert pointers == ([] if pointer is None else [pointer]), body
        assert (await payments.payment(order_id)).state == "succeeded"


async def test_only_money_that_is_here_goes_back(payments_url: str, sandbox: SandboxServer) -> None:
    async with till(payments_url, sandbox) as payments:
        undone = new_order()
        await payments.deliver(cancelled(undone))
        unheard_of, _ = await payments.ask("POST", "/payments/ORD-0/refunds")
        voided, _ = await payments.ask("POST", f"/payments/{undone}/refunds")
        text, _ = await payments.ask("POST", f"/payments/{undone}/refunds", b"5")

    assert (unheard_of, voided, text) == (404, 409, 415)


@pytest.mark.parametrize("mode", ["lose_response", "error"])
async def test_a_lost_answer_and_expired_keys_do_not_refund_twice(
    payments_url: str, sandbox: SandboxServer, mode: str
) -> None:
    async with till(payments_url, sandbox) as payments:
        order_id = await bought(payments)
        begun = {"begun": True} if mode == "error" else {}
        # 2 of 3: the look that goes before each send is struck, too.
        await fault(sandbox, mode, rate=0.6, seconds=60, **begun)
        try:
            status, _ = await payments.ask("POST", f"/payments/{order_id}/refunds", {"amount": 3})

            async def tried() -> bool:
                if mode == "lose_response":
                    await call(sandbox, "POST", "sandbox/keys/expire")
                hits = (await call(sandbox, "GET", "sandbox/faults"))["hits"][mode]
                over = (await payments.payment(order_id)).state == "succeeded"
                return bool(hits >= 4) or over

            await until(tried)
        finally:
            await heal(sandbox)
        payment = await payments.ended(order_id)

        assert (status, payment.refunded_minor) == (202, 300)
        assert await payments.captured(order_id) == (1, 300)
        assert await payments.said(order_id) == ["PaymentSucceeded", "RefundIssued"]


async def test_a_refund_that_arrives_after_its_time_out_is_not_made_again(
    payments_url: str, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CALL_TIMEOUT_S", 0.3)
    async with network(sandbox) as way, till(payments_url, sandbox, base=way.url) as payments:
        order_id = await bought(payments)
        way.hold("/v1/refunds")
        payment = await refunded(payments, order_id, {"amount": 3})
        await way.release()

        assert payment["refunded"] == 3.0
        assert await payments.captured(order_id) == (1, 300)


async def test_a_cancellation_during_a_refund_gives_the_rest_back(
    payments_url: str, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CALL_TIMEOUT_S", 0.3)
    async with network(sandbox) as way, till(payments_url, sandbox, base=way.url) as payments:
        order_id = await bought(payments)
        way.hold("/v1/refunds")
        path = f"/payments/{order_id}/refunds"
        await payments.ask("POST", path, {"amount": 3})

        async def in_flight() -> bool:
            return bool(way.held)

        await until(in_flight)
        busy, _ = await payments.ask("POST", path, {"amount": 1})
        await payments.deliver(cancelled(order_id))
        waiting = (await payments.payment(order_id)).state
        payment = await payments.ended(order_id)

        assert (busy, waiting) == (409, "op_then_refund")
        assert (payment.state, payment.refunded_minor) == ("refunded", 2_000)
        assert await payments.captured(order_id) == (1, 2_000)
        assert await payments.said(order_id) == [
            "PaymentSucceeded",
            "RefundIssued",
            "PaymentRefunded",
        ]


async def webhook(
    payments: Till, kind: str, intent_id: str, *, event_id: str = "", secret: str = SECRETS[0]
) -> int:
    """Send a webhook about an intent, signed; the status."""
    body = json.dumps(
        {
            "id": event_id or f"evt_{new_order()}",
            "type": kind,
            "data": {"object": {"object": "payment_intent", "id": intent_id, "status": "lies"}},
        }
    ).encode()
    headers = {"Content_Type": "application/json"}
    signature = sign(body, secret, int(time.time()))
    status, _ = await payments.ask(
        "POST", "/webhooks/stripe", body, **headers, Stripe_Signature=signature
    )
    return status


async def test_a_webhook_only_makes_us_look(payments_url: str, sandbox: SandboxServer) -> None:
    async with till(payments_url, sandbox) as payments:
        order_id = await bought(payments)
        intent_id = (await payments.payment(order_id)).intent_id or ""
        told = [
            await webhook(payments, kind, intent_id, event_id=event_id, secret=secret)
            for kind in ("payment_intent.canceled", "charge.refunded", "payment_intent.succeeded")
            for event_id in ("", f"evt_{order_id}", f"evt_{order_id}")
            for secret in SECRETS
        ]
        told += [await webhook(payments, "payment_intent.succeeded", "pi_of_nobody")]
        payment = await payments.ended(order_id)
        row = await payments.database.fetchrow(
            "SELECT count(*) AS n FROM webhooks WHERE intent_id = $1", intent_id
        )

        assert set(told) == {200}
        assert row is not None
        assert row["n"] == 7  # Six without an id of their own, one that came twelve times.
        assert payment.state == "succeeded"
        assert await payments.said(order_id) == ["PaymentSucceeded"]
        assert await payments.captured(order_id) == (1, 0)


async def test_a_forged_an_old_and_an_unsigned_webhook_are_refused(
    payments_url: str, sandbox: SandboxServer
) -> None:
    async with till(payments_url, sandbox) as payments:
        body = b'{"id":"evt_forged","type":"x","data":{"object":{}}}'
        now = int(time.time())
        signatures = [
            sign(body, "whsec_other", now),
            sign(body, SECRETS[0], now - 301),
            sign(body + b" ", SECRETS[0], now),
            "",
        ]
        refused = [
            (
                await payments.ask(
                    "POST",
                    "/webhooks/stripe",
                    body,
                    Content_Type="application/json",
                    Stripe_Signature=signature,
                )
            )[0]
            for signature in signatures
        ]
        row = await payments.database.fetchrow("SELECT 1 FROM webhooks WHERE id = 'evt_forged'")

    assert refused == [400] * 4
    assert row is None


async def test_a_capture_of_a_voided_order_is_given_back_when_a_webhook_tells_of_it(
    payments_url: str, sandbox: SandboxServer
) -> None:
    async with till(payments_url, sandbox) as payments, stripe_client(sandbox) as stripe:
        order_id = new_order()
        intent = await create(stripe)
        await payments.deliver(cancelled(order_id))
        # As it would be if our cancel had been answered wrongly.
        await payments.database.execute(
            "UPDATE payments SET intent_id = $2, amount_minor = 1999, currency = 'EUR',"
            " payment_method = 'pm_card_visa' WHERE order_id = $1",
            order_id,
            intent.id,
        )
        await confirm(stripe, intent.id, new_order())
        await webhook(payments, "payment_intent.succeeded", intent.id)
        payment = await payments.ended(order_id)
        (charge,) = await payments.charges("ORD-1")

        assert payment.state == "refunded"
        assert (charge["captured"], charge["refunded"]) == (1_999, 1_999)
        assert payments.found == [("late_capture", order_id)]
        assert await payments.said(order_id) == ["PaymentVoided", "PaymentRefunded"]


async def test_the_reconciler_finds_what_was_done_behind_our_back_and_charges_nobody(
    payments_url: str, sandbox: SandboxServer
) -> None:
    async with till(payments_url, sandbox) as payments, stripe_client(sandbox) as stripe:
        fine, given_back, voided, unpaid = [new_order() for _ in range(4)]
        for order_id in (fine, given_back, unpaid):
            await payments.deliver(reserved(order_id))
            await payments.ended(order_id)
        await payments.deliver(cancelled(voided))
        intents = {}
        for order_id, confirmed in ((voided, True), (fine, False), ("ORD-unknown", True)):
            made: Any = {"amount": 2_000, "currency": "eur", "payment_method": "pm_card_visa"}
            made |= {"metadata": {"order_id": order_id}, "confirm": confirmed}
            made_intent = await stripe.v1.payment_intents.create_async(made)
            intents[order_id] = made_intent.id
        dashboard: Any = {
            "payment_intent": (await payments.payment(given_back)).intent_id,
            "amount": 700,
        }
        await stripe.v1.refunds.create_async(dashboard)
        await payments.database.execute(
            "UPDATE payments SET intent_id = 'pi_lost' WHERE order_id = $1", unpaid
        )
        await payments.reconcile(int(time.time()) + LATER_S)
        await payments.ended(voided)
        first = set(payments.found)
        payments.found.clear()
        again = await payments.reconcile(int(time.time()) + LATER_S)

        mine = {fine, given_back, voided, unpaid, "ORD-unknown"}
        assert {each for each in first if each[1] in mine} == {
            ("orphan", fine),
            ("refund_differs", given_back),
            ("late_capture", voided),
            ("captured_for_unknown_order", "ORD-unknown"),
            ("captured_elsewhere", unpaid),
            ("unknown_intent", unpaid),
        }
        assert await payments.said(given_back) == ["PaymentSucceeded", "RefundIssued"]
        assert await payments.said(voided) == ["PaymentVoided", "PaymentRefunded"]
        assert await payments.captured(voided) == (1, 2_000)
        assert await payments.captured(fine) == (1, 0)
        # What could be repaired is; what needs a person is told again.
        assert {kind for kind, order_id in payments.found if order_id in mine} == {
            "captured_for_unknown_order",
            "captured_elsewhere",
            "unknown_intent",
        }
        assert 0 < again.explained_ratio < 1
