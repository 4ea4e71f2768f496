"""Repairing what was set aside, by the command line, on the whole system."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import nats
import pytest
from nats.aio.client import Client

from shopping import Shop, System, until

PATIENCE_S = 60


@pytest.fixture
async def broker(system: System) -> AsyncIterator[Client]:
    """A raw client, as a producer in another language has it."""
    client = await nats.connect(system.run["nats"]["urls"][0])
    yield client
    await client.close()


async def cli(system: System, *arguments: str) -> tuple[int, str]:
    """Run `ironcart deadletters`; its exit code and everything that it said."""
    done = await asyncio.to_thread(system.cli, "deadletters", *arguments)
    return done.returncode, done.stdout + done.stderr


def event(order_id: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": secrets.token_hex(16),
        "type": "RefundIssued",
        "aggregate_id": order_id,
        "data": {"order_id": order_id} | data,
        "timestamp": "2026-11-20T23:14:05.123456Z",
        "trace_id": "abc123",
    }


async def parked(system: System) -> int:
    """Wait until orders has set an event aside; its number in the list."""
    numbers: list[int] = []

    async def listed() -> bool:
        _, said = await cli(system, "list", "--service", "orders", "--limit", "1000")
        lines = [each for each in said.splitlines() if "not a RefundIssued" in each]
        numbers[:] = [int(line.split()[0]) for line in lines]
        return len(numbers) == 1

    await until(listed, PATIENCE_S)
    return numbers[0]


async def told(system: System, seq: int, count: int) -> list[str]:
    """Wait until the audit trail has so many actions on a dead letter; their types."""
    found: list[str] = []

    async def audited() -> bool:
        url = f"{system.url('audit')}/audit/dlq-orders-{seq}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            items = (await answer.json()).get("items", [])
        found[:] = [each["type"] for each in items]
        return len(found) >= count

    await until(audited, PATIENCE_S)
    return found


async def test_a_discarded_dead_letter_is_given_up_with_a_reason_and_for_good(
    shop: Shop, broker: Client
) -> None:
    system = shop.system
    order_id = f"DL-{secrets.token_hex(4)}"
    broken = event(order_id, {"amount": "a lot"})
    await broker.jetstream().publish("payments.refund_issued", json.dumps(broken).encode())
    seq = await parked(system)

    code, said = await cli(system, "discard", str(seq), "--why", " ")
    assert (code, "say why" in said) == (1, True), said
    code, said = await cli(system, "discard", str(seq), "--why", "no such order", "--by", "ann")
    assert code == 0, said
    code, said = await cli(system, "replay", str(seq))
    assert (code, "discarded already" in said) == (1, True), said
    assert await told(system, seq, 1) == ["DeadLetterDiscarded"]
