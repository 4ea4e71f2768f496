"""Calls to the gateway, each of them one request: what was said first is what counts."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from payments_parts import new_order
from sandbox_parts import call, charges, fault, heal, running_sandbox

from ironcart.embedded.sandbox.server import SandboxServer
from ironcart.services.payments.gateway import (
    Canceled,
    Created,
    Declined,
    Gateway,
    OperatorRefunded,
    Succeeded,
)
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.resilience import Breaker


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxServer]:
    with running_sandbox(tmp_path) as server:
        yield server


@asynccontextmanager
async def gateway_at(url: str) -> AsyncIterator[Gateway]:
    gateway = Gateway("sk_test_1", url, Breaker("gateway", failures_max=10**6))
    try:
        yield gateway
    finally:
        await gateway.close()


@asynccontextmanager
async def on_the_way(
    sandbox: SandboxServer, after: Callable[[int], Awaitable[None]]
) -> AsyncIterator[tuple[str, list[str]]]:
    """A way to the sandbox, which has `after(status)` happen before an answer is handed over."""
    asked: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path}")
        kept = ("authorization", "content-type", "idempotency-key")
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                request.method,
                sandbox.url + request.path_qs,
                headers={name: request.headers[name] for name in kept if name in request.headers},
                data=await request.read(),
            ) as answer,
        ):
            body = await answer.read()
        await after(answer.status)
        return web.Response(body=body, status=answer.status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}", asked
    finally:
        await runner.cleanup()


async def expire_keys(sandbox: SandboxServer) -> None:
    await call(sandbox, "POST", "sandbox/keys/expire")


async def create(gateway: Gateway, order_id: str, attempts: int = 0) -> str:
    created = await gateway.create(
        order_id=order_id,
        amount_minor=2_000,
        currency="EUR",
        method="pm_card_visa",
        generation=0,
        attempts=attempts,
    )
    return cast("Created", created).intent_id


async def taken(sandbox: SandboxServer, order_id: str) -> list[int]:
    return [charge["captured"] for charge in await charges(sandbox, order_id)]


@pytest.mark.parametrize("what_then", ["keys expire", "the gateway goes away"])
async def test_a_card_that_says_no_is_asked_once_whatever_becomes_of_the_key_or_the_gateway(
    sandbox: SandboxServer, what_then: str
) -> None:
    async def after(status: int) -> None:
        if status != 402:
            return
        await heal(sandbox)  # The next time the card would say yes.
        if what_then == "keys expire":
            await expire_keys(sandbox)
        else:
            await fault(sandbox, "down")

    async with on_the_way(sandbox, after) as (url, asked), gateway_at(url) as gateway:
        order_id = new_order()
        intent_id = await create(gateway, order_id)
        await fault(sandbox, "decline")
        asked.clear()
        reply = await gateway.confirm(intent_id, 0)
        requests = list(asked)
        await heal(sandbox)

        assert isinstance(reply, Declined)
        assert requests == [f"POST /v1/payment_intents/{intent_id}/confirm"]
        assert not any(await taken(sandbox, order_id))
        assert await gateway.cancel(intent_id, 0) == Canceled()


@pytest.mark.parametrize("expired", [False, True])
async def test_a_confirmation_whose_answer_was_lost_has_taken_the_money_once(
    sandbox: SandboxServer, *, expired: bool
) -> None:
    async with gateway_at(sandbox.url) as gateway:
        order_id = new_order()
        intent_id = await create(gateway, order_id)
        await fault(sandbox, "lose_response")
        with pytest.raises(Unavailable):
            await gateway.confirm(intent_id, 0)
        await heal(sandbox)
        if expired:
            await expire_keys(sandbox)

        # Under the same key it is replayed; under another, the intent is looked at.
        assert await gateway.confirm(intent_id, 0) == Succeeded()
        assert await gateway.confirm(intent_id, 1) == Succeeded()
        [captured] = await charges(sandbox, order_id)
        assert captured["captured"]


async def test_a_stored_failure_stays_one_until_its_key_is_left_behind_or_expires(
    sandbox: SandboxServer,
) -> None:
    async with gateway_at(sandbox.url) as gateway:
        order_id = new_order()
        await fault(sandbox, "error", begun=True)
        with pytest.raises(Unavailable):
            await create(gateway, order_id)
        await heal(sandbox)
        with pytest.raises(Unavailable, match="under this key"):
            await create(gateway, order_id)
        await expire_keys(sandbox)
        intent_id = await create(gateway, order_id)
        await gateway.confirm(intent_id, 0)
        await fault(sandbox, "error", begun=True)
        with pytest.raises(Unavailable):
            await gateway.refund_part(intent_id, "r1", 500, 0.0)
        await heal(sandbox)

        assert await gateway.refund_part(intent_id, "r1", 500, 0.0) == OperatorRefunded(500)
        [charge] = await charges(sandbox, order_id)
        assert charge["refunded"] == 500


async def test_what_stripe_refuses_is_an_answer_and_is_asked_once(sandbox: SandboxServer) -> None:
    async def nothing(_status: int) -> None:
        return

    async with on_the_way(sandbox, nothing) as (url, asked), gateway_at(url) as gateway:
        refused: Any = await gateway.create(
            order_id=new_order(),
            amount_minor=2_000,
            currency="EUR",
            method="pm_nobody",
            generation=0,
            attempts=0,
        )
        paid = await create(gateway, new_order())
        await gateway.confirm(paid, 0)
        asked.clear()

        assert refused == Declined("resource_missing")
        assert await gateway.cancel(paid, 0) == Succeeded()
        intent = f"/v1/payment_intents/{paid}"
        assert asked == [f"POST {intent}/cancel", f"GET {intent}"]
