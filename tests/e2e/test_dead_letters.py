"""Repairing what was set aside, by the command line, on the whole system."""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import nats
import pytest
import typer
from nats.aio.client import Client
from typer.testing import CliRunner

from ironcart.cli.deadletters import app
from ironcart.cli.doctor import doctor
from ironcart.cli.repair import REPLAYS_MAX
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


async def quick(system: System, *arguments: str) -> tuple[int, str]:
    """The same without a process of its own, which takes most of a command's time."""
    whole = [*arguments, "--data", str(system.folder)]
    done = await asyncio.to_thread(CliRunner().invoke, app, whole)
    return done.exit_code, f"{done.output}{done.exception or ''}"


def event(order_id: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": secrets.token_hex(16),
        "type": "RefundIssued",
        "aggregate_id": order_id,
        "data": {"order_id": order_id} | data,
        "timestamp": "2026-11-20T23:14:05.123456Z",
        "trace_id": "abc123",
    }


async def open_by_doctor(system: System) -> int:
    """How many dead letters `ironcart doctor` warns of."""
    alone = typer.Typer()
    alone.command()(doctor)
    arguments = ["--data", str(system.folder)]
    done = await asyncio.to_thread(CliRunner().invoke, alone, arguments)
    assert "stream DEADLETTERS" in done.output, f"{done.output}{done.exception}"
    found = re.search(r"warning  (\d+) dead letters:", done.output)
    return int(found[1]) if found else 0


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


async def rows(system: System, service: str, order_id: str) -> list[Any]:
    """What a service has set aside of an order, in order: state, type, letter."""
    connection = await asyncpg.connect(system.run["postgres"]["url"])
    try:
        query = f"SELECT state, type, letter_seq, replays FROM {service}.parked"
        found = await connection.fetch(f"{query} WHERE aggregate_id = $1 ORDER BY no", order_id)
    finally:
        await connection.close()
    return [tuple(row) for row in found]


async def count_replays(system: System, order_id: str, replays: int) -> None:
    """Have an order look as if it had come back so many times."""
    connection = await asyncpg.connect(system.run["postgres"]["url"])
    try:
        update = "UPDATE orders.parked SET replays = $2 WHERE aggregate_id = $1"
        await connection.execute(update, order_id, replays)
    finally:
        await connection.close()


async def letter_of(system: System, service: str, order_id: str) -> int:
    """Wait until a service has set an order aside; its number in the list."""

    async def kept() -> bool:
        found = await rows(system, service, order_id)
        return bool(found) and found[0][2] is not None

    await until(kept, PATIENCE_S)
    return int((await rows(system, service, order_id))[0][2])


async def states(system: System, service: str, order_id: str, expected: Sequence[str]) -> None:
    """Wait until what a service has set aside of an order is in these states."""

    async def reached() -> bool:
        return [row[0] for row in await rows(system, service, order_id)] == list(expected)

    await until(reached, PATIENCE_S)


async def told(system: System, seq: int, count: int, service: str = "orders") -> list[str]:
    """Wait until the audit trail has so many actions on a dead letter; their types."""
    found: list[str] = []

    async def audited() -> bool:
        url = f"{system.url('audit')}/audit/dlq-{service}-{seq}"
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
    before = await open_by_doctor(system)

    code, said = await cli(system, "replay", str(seq))
    assert (code, "not a RefundIssued" in said) == (1, True), said
    code, said = await cli(system, "discard", str(seq), "--why", " ")
    assert (code, "say why" in said) == (1, True), said
    code, said = await cli(system, "discard", str(seq), "--why", "no such order", "--by", "ann")
    assert code == 0, said
    code, said = await cli(system, "replay", str(seq))
    assert (code, "discarded already" in said) == (1, True), said
    assert await told(system, seq, 1) == ["DeadLetterDiscarded"]
    assert await open_by_doctor(system) == before - 1


async def test_an_edited_order_is_dealt_with_once_and_in_order_with_what_waited_behind(
    shop: Shop, broker: Client, tmp_path: Path
) -> None:
    system, order_id, sku = shop.system, f"DL-{secrets.token_hex(4)}", await shop.stocked(5)
    items = [{"sku": sku, "quantity": 1, "unit_price": 129.9}]
    wrong = {"customer_id": "C-9", "amount": 129.905, "items": items}
    order = event(order_id, wrong) | {"type": "OrderCreated"}
    right = order | {"data": order["data"] | {"amount": 129.9}}
    moved = right | {"aggregate_id": "DL-other", "data": right["data"] | {"order_id": "DL-other"}}
    await broker.jetstream().publish("orders.created", json.dumps(order).encode())
    first = await letter_of(system, "orders", order_id)
    other = await letter_of(system, "inventory", order_id)
    file = tmp_path / "edited.json"

    async def edit(seq: int, body: Any) -> tuple[int, str]:
        file.write_text(json.dumps(body))
        return await quick(system, "edit", str(seq), "--file", str(file), "--by", "ann")

    for body, reason in (
        (order, "EUR has 2 decimals"),
        (right | {"id": secrets.token_hex(16)}, "keep the event's id"),
        (moved, f"keep aggregate_id {order_id}"),
    ):
        code, said = await edit(first, body)
        assert (code, reason in said) == (1, True), said

    # Inventory's goes first: what follows from it has to wait behind that of orders.
    assert (await edit(other, right))[0] == 0
    assert (await quick(system, "replay", str(other)))[0] == 0
    await states(system, "orders", order_id, ["parked", "waiting", "waiting"])
    assert (await edit(first, right))[0] == 0
    _, said = await quick(system, "show", str(first))
    assert 0 < said.find("INVENTORY") < said.find("PaymentSucceeded"), said
    await count_replays(system, order_id, REPLAYS_MAX)
    code, said = await quick(system, "replay", str(first), "--dry-run")
    assert (code, "was replayed 3 times and came back" in said) == (1, True), said
    code, said = await quick(system, "replay", str(first), "--dry-run", "--force")
    assert (code, "would be replayed by orders, 2 behind it" in said) == (0, True), said
    await states(system, "orders", order_id, ["parked", "waiting", "waiting"])
    assert (await edit(first, right))[0] == 0  # What is edited is something new to the guard.
    code, said = await quick(system, "replay", str(first), "--why", "mended")
    assert code == 0, said

    assert (await shop.ended(order_id))["status"] == "confirmed"
    await states(system, "orders", order_id, ["replayed"] * 3)
    kinds = [row[1] for row in await rows(system, "orders", order_id)]
    assert kinds[1:] == ["StockReserved", "PaymentSucceeded"]
    assert (await shop.charge(order_id))["captured"] == 12990
    _, said = await quick(system, "show", str(first))
    assert "DeadLetterEdited by ann" in said
    assert ": mended" in said
    trail = ["DeadLetterEdited", "DeadLetterEdited", "DeadLetterReplayed"]
    assert await told(system, first, len(trail)) == trail
    assert await told(system, other, 2, "inventory") == trail[1:]
    system.verify()
