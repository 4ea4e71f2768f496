"""The sandbox through the official Stripe SDK: what it answers is what Stripe would."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
import stripe
from aiohttp import web
from sandbox_parts import PATIENCE_S, call, charges, running_sandbox, stripe_client

from ironcart.embedded.ports import HOST, free_port
from ironcart.embedded.sandbox.server import SandboxServer

SECRET = "whsec_test"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxServer]:
    with running_sandbox(tmp_path_factory.mktemp("sandbox")) as server:
        yield server


@pytest.fixture
async def client(sandbox: SandboxServer) -> AsyncIterator[stripe.StripeClient]:
    async with stripe_client(sandbox) as made:
        yield made


async def create(client: stripe.StripeClient, **params: Any) -> stripe.PaymentIntent:
    asked = {"amount": 1999, "currency": "eur", "payment_method": "pm_card_visa", **params}
    return await client.v1.payment_intents.create_async(asked)  # type: ignore[arg-type]


def error_of(raised: "pytest.ExceptionInfo[stripe.StripeError]") -> dict[str, Any]:
    body = raised.value.json_body
    assert isinstance(body, dict)
    error: dict[str, Any] = body["error"]
    return error


async def test_an_intent_is_created_confirmed_and_retrieved(
    sandbox: SandboxServer, client: stripe.StripeClient
) -> None:
    created = await create(
        client, metadata={"order_id": "ORD-pay"}, payment_method_types=["card"], description="x"
    )
    assert (created.status, created.latest_charge) == ("requires_confirmation", None)

    paid = await client.v1.payment_intents.confirm_async(created.id)
    found = await client.v1.payment_intents.retrieve_async(created.id)

    assert (paid.status, paid.amount_received, paid.currency) == ("succeeded", 1999, "eur")
    assert found.latest_charge == paid.latest_charge
    assert str(paid.latest_charge).startswith("ch_")
    [charge] = await charges(sandbox, "ORD-pay")
    keys = charge.pop("keys")
    assert charge == {
        "id": created.id,
        "order_id": "ORD-pay",
        "amount": 1999,
        "currency": "eur",
        "captured": 1999,
        "refunded": 0,
        "status": "succeeded",
    }
    assert len(keys) == 2  # the SDK makes a key for each call that has none


async def test_the_hot_path_of_the_sdk_works_too(client: stripe.StripeClient) -> None:
    created = await client.raw_request_async(
        "post", "/v1/payment_intents", amount=5, currency="EUR", confirm=False
    )
    confirmed = await client.raw_request_async(
        "post",
        f"/v1/payment_intents/{created.data['id']}/confirm",
        payment_method="pm_card_mastercard",
        idempotency_key="hot-1",
    )

    assert created.data["currency"] == "eur"
    assert confirmed.data["status"] == "succeeded"
    assert confirmed.request_id.startswith("req_")


@pytest.mark.parametrize("way", ["confirm", "cancel"])
async def test_a_settled_intent_is_settled(client: stripe.StripeClient, way: str) -> None:
    settled = [
        await create(client, confirm=True),
        await client.v1.payment_intents.cancel_async((await create(client)).id),
    ]
    ask = {
        "confirm": client.v1.payment_intents.confirm_async,
        "cancel": client.v1.payment_intents.cancel_async,
    }[way]
    for intent in settled:
        with pytest.raises(stripe.InvalidRequestError) as raised:
            await ask(intent.id)
        error = error_of(raised)
        assert raised.value.http_status == 400
        assert raised.value.code == "payment_intent_unexpected_state"
        assert error["payment_intent"]["id"] == intent.id
        assert error["payment_intent"]["status"] == intent.status


@pytest.mark.parametrize(
    ("card", "code", "decline_code"),
    [
        ("pm_card_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
        ("pm_card_visa_chargeDeclinedExpiredCard", "expired_card", "expired_card"),
    ],
)
async def test_a_card_is_declined_with_its_reason(
    client: stripe.StripeClient, card: str, code: str, decline_code: str
) -> None:
    intent = await create(client, payment_method=card)

    with pytest.raises(stripe.CardError) as raised:
        await client.v1.payment_intents.confirm_async(intent.id)

    error = error_of(raised)
    assert (raised.value.http_status, raised.value.code) == (402, code)
    assert error["decline_code"] == decline_code
    assert error["payment_intent"]["status"] == "requires_payment_method"
    found = await client.v1.payment_intents.retrieve_async(intent.id)
    assert (found.status, found.amount_received) == ("requires_payment_method", 0)
    assert found.last_payment_error is not None
    assert found.last_payment_error.decline_code == decline_code


async def test_a_card_that_needs_action_is_no_error_unless_nobody_is_there(
    client: stripe.StripeClient,
) -> None:
    intent = await create(client, payment_method="pm_card_authenticationRequired")

    waiting = await client.v1.payment_intents.confirm_async(intent.id)
    with pytest.raises(stripe.CardError) as raised:
        await client.v1.payment_intents.confirm_async(intent.id, {"error_on_requires_action": True})

    assert waiting.status == "requires_action"
    assert raised.value.code == "authentication_required"


async def test_what_does_not_exist_or_is_missing_is_refused(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError) as no_card:
        await create(client, payment_method="pm_unknown")
    with pytest.raises(stripe.InvalidRequestError) as no_intent:
        await client.v1.payment_intents.retrieve_async("pi_unknown")
    with pytest.raises(stripe.InvalidRequestError) as no_amount:
        await create(client, amount=0)
    with pytest.raises(stripe.InvalidRequestError) as no_currency:
        await client.raw_request_async("post", "/v1/payment_intents", amount=5)
    with pytest.raises(stripe.InvalidRequestError) as unknown:
        await create(client, amonut=5)
    with pytest.raises(stripe.InvalidRequestError) as two_steps:
        await create(client, capture_method="manual")
    with pytest.raises(stripe.InvalidRequestError) as no_route:
        await client.raw_request_async("get", "/v1/customers")

    assert (no_card.value.http_status, no_card.value.code) == (400, "resource_missing")
    assert (no_intent.value.http_status, no_intent.value.code) == (404, "resource_missing")
    assert no_amount.value.code == "parameter_invalid_integer"
    assert (no_currency.value.code, no_currency.value.param) == ("parameter_missing", "currency")
    assert unknown.value.code == "parameter_unknown"
    assert "capture_method" in str(two_steps.value)
    assert no_route.value.http_status == 404


@pytest.mark.parametrize("key", ["sk_live_1", "nonsense"])
async def test_only_a_test_key_is_let_in(sandbox: SandboxServer, key: str) -> None:
    async with stripe_client(sandbox, key) as stranger:
        with pytest.raises(stripe.AuthenticationError):
            await create(stranger)


async def test_a_key_may_come_as_basic_authentication_but_must_come(
    sandbox: SandboxServer,
) -> None:
    async with aiohttp.ClientSession() as session:
        page = f"{sandbox.url}/v1/payment_intents"
        basic = {"Authorization": aiohttp.encode_basic_auth("sk_test_1", "")}
        async with session.get(page, headers=basic) as answer:
            assert answer.status == 200
        async with session.get(page) as answer:
            assert answer.status == 401


async def test_refunds_are_partial_or_all_that_is_left(
    sandbox: SandboxServer, client: stripe.StripeClient
) -> None:
    intent = await create(client, confirm=True, metadata={"order_id": "ORD-back"})

    part = await client.v1.refunds.create_async(
        {"payment_intent": intent.id, "amount": 500, "metadata": {"why": "late"}}
    )
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.refunds.create_async({"payment_intent": intent.id, "amount": 1500})
    rest = await client.v1.refunds.create_async({"payment_intent": intent.id})
    with pytest.raises(stripe.InvalidRequestError) as raised:
        await client.v1.refunds.create_async({"payment_intent": intent.id})

    assert (part.amount, part.status, rest.amount) == (500, "succeeded", 1499)
    assert raised.value.code == "charge_already_refunded"
    found = await client.v1.refunds.retrieve_async(part.id)
    assert found.metadata is not None
    assert found.metadata["why"] == "late"
    listed = await client.v1.refunds.list_async({"payment_intent": intent.id})
    assert [refund.id for refund in listed.data] == [rest.id, part.id]
    [charge] = await charges(sandbox, "ORD-back")
    assert (charge["captured"], charge["refunded"]) == (1999, 1999)


async def test_intents_are_listed_newest_first_page_by_page(client: stripe.StripeClient) -> None:
    made = [(await create(client)).id for _ in range(5)]

    page = await client.v1.payment_intents.list_async({"limit": 2})
    rest = await client.v1.payment_intents.list_async(
        {"limit": 3, "starting_after": page.data[-1].id}
    )

    assert [intent.id for intent in (*page.data, *rest.data)] == made[::-1]
    assert page.has_more


async def test_a_key_replays_the_first_answer_and_moves_nothing(
    sandbox: SandboxServer, client: stripe.StripeClient
) -> None:
    intent = await create(client, metadata={"order_id": "ORD-key"})
    path = f"/v1/payment_intents/{intent.id}/confirm"

    first = await client.raw_request_async("post", path, idempotency_key="k-1")
    second = await client.raw_request_async("post", path, idempotency_key="k-1")

    assert first.body == second.body
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    [charge] = await charges(sandbox, "ORD-key")
    assert charge["keys"].count("k-1") == 1


async def test_a_decline_is_replayed_even_when_the_card_would_be_taken_now(
    client: stripe.StripeClient,
) -> None:
    intent = await create(client, payment_method="pm_card_chargeDeclined")
    for _ in range(2):
        with pytest.raises(stripe.CardError):
            await client.v1.payment_intents.confirm_async(
                intent.id, options={"idempotency_key": "declined"}
            )
    found = await client.v1.payment_intents.retrieve_async(intent.id)
    assert found.latest_charge == f"ch_{intent.id[3:]}01"


async def test_a_request_that_never_began_leaves_its_key_free(
    client: stripe.StripeClient,
) -> None:
    options: stripe.RequestOptions = {"idempotency_key": "free"}
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.payment_intents.create_async({"amount": 0, "currency": "eur"}, options)
    await client.v1.payment_intents.create_async({"amount": 1, "currency": "eur"}, options)


async def test_a_key_with_other_parameters_is_an_error(client: stripe.StripeClient) -> None:
    options: stripe.RequestOptions = {"idempotency_key": "other"}
    await client.v1.payment_intents.create_async({"amount": 1, "currency": "eur"}, options)
    with pytest.raises(stripe.IdempotencyError) as raised:
        await client.v1.payment_intents.create_async({"amount": 2, "currency": "eur"}, options)
    assert raised.value.http_status == 400


async def test_expired_keys_execute_again_and_a_confirmed_intent_still_pays_once(
    sandbox: SandboxServer, client: stripe.StripeClient
) -> None:
    options: stripe.RequestOptions = {"idempotency_key": "expiring"}
    asked: Any = {"amount": 7, "currency": "eur", "payment_method": "pm_card_visa"}
    first = await client.v1.payment_intents.create_async(asked, options)
    confirm_options: stripe.RequestOptions = {"idempotency_key": "expiring-confirm"}
    await client.v1.payment_intents.confirm_async(first.id, options=confirm_options)

    assert (await call(sandbox, "POST", "sandbox/keys/expire"))["expired"] > 0

    second = await client.v1.payment_intents.create_async(asked, options)
    assert second.id != first.id
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.payment_intents.confirm_async(first.id, options=confirm_options)


async def test_events_reach_an_endpoint_signed_and_are_sent_again_when_refused(
    sandbox: SandboxServer, client: stripe.StripeClient
) -> None:
    events: asyncio.Queue[stripe.Event] = asyncio.Queue()
    refusals = iter([500, 503])

    async def take(request: web.Request) -> web.Response:
        payload = await request.read()
        header = request.headers["Stripe-Signature"]
        status = next(refusals, 200)
        if status == 200:
            events.put_nowait(stripe.Webhook.construct_event(payload, header, SECRET))
        return web.Response(status=status)

    port = free_port()
    app = web.Application()
    app.router.add_post("/hook", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HOST, port).start()
    url = f"http://{HOST}:{port}/hook"
    await call(sandbox, "POST", "sandbox/webhooks", {"url": url, "secret": SECRET})
    try:
        paid = await create(client, confirm=True)
        first = await asyncio.wait_for(events.get(), PATIENCE_S)
        await client.v1.refunds.create_async({"payment_intent": paid.id})
        second = await asyncio.wait_for(events.get(), PATIENCE_S)
        with pytest.raises(stripe.CardError):
            await create(client, confirm=True, payment_method="pm_card_chargeDeclined")
        third = await asyncio.wait_for(events.get(), PATIENCE_S)
        await client.v1.payment_intents.cancel_async((await create(client)).id)
        fourth = await asyncio.wait_for(events.get(), PATIENCE_S)
    finally:
        await call(sandbox, "DELETE", "sandbox/webhooks")
        await runner.cleanup()

    assert [event.type for event in (first, second, third, fourth)] == [
        "payment_intent.succeeded",
        "charge.refunded",
        "payment_intent.payment_failed",
        "payment_intent.canceled",
    ]
    assert json.loads(str(first.data.object))["id"] == paid.id
