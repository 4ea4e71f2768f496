"""What the tests of the sandbox share: a running one, the official SDK on it, and its controls."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import stripe

from ironcart.embedded.ports import free_port
from ironcart.embedded.sandbox.server import SandboxServer

PATIENCE_S = 15


@contextmanager
def running_sandbox(folder: Path, *options: str) -> Iterator[SandboxServer]:
    """A sandbox process on free ports."""
    port = free_port()
    smtp_port = free_port(avoid={port})
    server = SandboxServer(folder, port=port, smtp_port=smtp_port, options=options)
    server.start()
    try:
        yield server
    finally:
        server.terminate()


@asynccontextmanager
async def stripe_client(
    sandbox: SandboxServer, key: str = "sk_test_1"
) -> AsyncIterator[stripe.StripeClient]:
    """The official SDK on its aiohttp client, which repeats nothing by itself."""
    http_client = stripe.AIOHTTPClient()
    try:
        yield stripe.StripeClient(
            key,
            base_addresses={"api": sandbox.url},
            http_client=http_client,
            max_network_retries=0,
        )
    finally:
        await http_client.close_async()  # type: ignore[no-untyped-call]


async def call(
    sandbox: SandboxServer, method: str, route: str, body: Any = None, *, status: int = 200
) -> Any:
    """The JSON that a route outside of Stripe's API answers with this status."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{sandbox.url}/{route}", json=body) as answer,
    ):
        assert answer.status == status
        return await answer.json()


async def fault(sandbox: SandboxServer, mode: str, **rest: Any) -> None:
    """Switch a fault on."""
    await call(sandbox, "POST", "sandbox/faults", {"mode": mode, **rest})


async def heal(sandbox: SandboxServer) -> None:
    """Switch all faults off."""
    await call(sandbox, "DELETE", "sandbox/faults")


async def charges(sandbox: SandboxServer, order_id: str = "ORD-1") -> list[dict[str, Any]]:
    """The truth about an order's charges."""
    route = f"sandbox/charges?order_id={order_id}"
    found: list[dict[str, Any]] = await call(sandbox, "GET", route)
    return found


async def create(client: stripe.StripeClient, key: str | None = None) -> stripe.PaymentIntent:
    """An intent of 19.99 EUR for ORD-1, not confirmed."""
    return await client.v1.payment_intents.create_async(
        {
            "amount": 1999,
            "currency": "eur",
            "payment_method": "pm_card_visa",
            "metadata": {"order_id": "ORD-1"},
        },
        {"idempotency_key": key} if key else None,
    )


async def confirm(client: stripe.StripeClient, intent_id: str, key: str) -> stripe.PaymentIntent:
    """Confirm under this idempotency key."""
    return await client.v1.payment_intents.confirm_async(
        intent_id, options={"idempotency_key": key}
    )


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something in another process to become true."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 (no event reaches us from there)
            await asyncio.sleep(0.01)
