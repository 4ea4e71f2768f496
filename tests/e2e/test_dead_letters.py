"""Repairing what was set aside, by the command line, on the whole system."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
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


async def parked(system: System, order_id: str) -> int:
    """Wait until an order's event is set aside; its number in the list."""

    async def listed() -> list[str]:
        _, said = await cli(system, "list", "--service", "orders", "--limit", "1000")
        return [line for line in said.splitlines() if order_id in line or "not a Refund" in line]

    (line,) = await until(listed, PATIENCE_S)
    return int(line.split()[0])


async def told(system: System, seq: int, count: int) -> list[str]:
    """Wait until the audit trail has so many actions on a dead letter; their types."""

    async def audited() -> Any:
        url = f"{system.url('audit')}/audit/dlq-orders-{seq}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            items = (await answer.json()).get("items", [])
        return [each["type"] for each in items] if len(items) >= count else None

    found: list[str] = await until(audited, PATIENCE_S)
    return found


async def test_a_dead_letter_is_edited_replayed_and_audited_and_another_is_discarded(
    shop: Shop, broker: Client, tmp_path: Path
) -> None:
    system = shop.system
    order_id = f"DL-{secrets.token_hex(4)}"
    broken = event(order_id, {"amount": "a lot"})
    await broker.jetstream().publish("payments.refund_issued", json.dumps(broken).encode())
    seq = await parked(system, order_id)

    code, said = await cli(system, "replay", str(seq))
    assert (code, "not a RefundIssued" in said) == (1, True), said

    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(broken | {"aggregate_id": "ANOTHER"}))
    code, said = await cli(system, "edit", str(seq), "--file", str(wrong))
    assert code == 1, said

    code, said = await cli(system, "discard", str(seq), "--why", " ")
    assert (code, "say why" in said) == (1, True), said

    code, said = await cli(system, "discard", str(seq), "--why", "no such order", "--by", "ann")
    assert code == 0, said
    code, said = await cli(system, "replay", str(seq), "--dry-run")
    assert (code, "discarded already" in said) == (1, True), said
    assert await told(system, seq, 1) == ["DeadLetterDiscarded"]
    _, said = await cli(system, "list", "--service", "orders")
    assert order_id not in said
