"""Going through many dead letters: their bodies are never all in memory."""

import asyncio
import tracemalloc

import pytest
from typer.testing import CliRunner

from heart_parts import STREAM_BYTES_MAX, make_schema
from ironcart.cli import address, deadletters, services
from ironcart.embedded.nats_server import NatsServer
from ironcart.toolkit.broker import Broker, Delivery, ensure
from ironcart.toolkit.database import Database
from ironcart.toolkit.deadletters import dead_letter, park
from ironcart.toolkit.loop import parking
from ironcart.toolkit.loop.verdicts import Term
from ironcart.toolkit.topology import DEAD_LETTER_STREAM

LETTERS = 40
BODY_BYTES = 900_000


async def set_aside(broker: Broker, database: Database) -> None:
    """Have orders set large messages aside that it cannot read."""
    for seq in range(1, LETTERS + 1):
        body = b"%06d" % seq + b"x" * BODY_BYTES
        delivery = Delivery("ORDERS", seq, "orders.created", body, {}, 1, 0.0, "")
        term = Term(delivery, "unknown", "no JSON", "no JSON", 1)
        async with database.transaction() as connection:
            await parking.set_aside(connection, [term])
        letter = dead_letter(
            "orders", delivery, "unknown", reason="no JSON", error="no JSON", attempts=1
        )
        await parking.mark_letter(database, "ORDERS", seq, await park(broker, letter))


async def invoke(*arguments: str) -> tuple[int, list[str], int]:
    """Run the command in here: its exit code, what it said, and the most memory it took."""
    tracemalloc.start()
    try:
        done = await asyncio.to_thread(CliRunner().invoke, deadletters.app, arguments)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output.splitlines(), peak_bytes


async def test_listing_and_replaying_all_dead_letters_never_holds_all_of_their_bodies(
    own_broker: NatsServer, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in services.NAMES:
        await make_schema(database_url, name)
    where = address.Addresses(
        nats_url=own_broker.url,
        nats_monitor_url="",
        databases=dict.fromkeys(services.NAMES, database_url),
    )
    monkeypatch.setattr(address, "find", lambda _: where)
    broker, database = Broker(own_broker.url, "orders"), Database(database_url, "orders", "test")
    await broker.connect()
    try:
        await ensure(broker, [DEAD_LETTER_STREAM], [], replicas=1, bytes_max=STREAM_BYTES_MAX)
        await set_aside(broker, database)
        services.every()  # What is loaded once is no matter of the letters.
        some_bytes = LETTERS * BODY_BYTES // 2

        code, lines, peak_bytes = await invoke("list")
        assert (code, len(lines)) == (0, LETTERS)
        assert all(line.endswith("no JSON [parked]") for line in lines)
        assert peak_bytes < some_bytes

        code, lines, peak_bytes = await invoke("replay", "--all", "--dry-run")
        assert (code, len(lines)) == (1, LETTERS)
        assert all("JSON is malformed" in line for line in lines)
        assert peak_bytes < some_bytes
        code, lines, _ = await invoke("list", "--limit", "7")
        assert (code, len(lines)) == (0, 7)
    finally:
        await broker.close()
        await database.close()
