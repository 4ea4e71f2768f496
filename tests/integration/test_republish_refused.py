"""Refilling a stream that refuses what it is given: the command ends and says what to change."""

import asyncio
from typing import Any

import pytest

from heart_parts import Bench, Pong, bench
from ironcart.cli.republish import _refill
from ironcart.toolkit.outcomes import Fact, Refused

ENDS_WITHIN_S = 15


async def change(parts: Bench, **fields: Any) -> None:
    """Set the stream of Pongs up otherwise than it is declared."""
    name = parts.topology.pongs.name
    config = (await parts.broker.api(f"STREAM.INFO.{name}"))["config"]
    await parts.broker.api(f"STREAM.UPDATE.{name}", config | fields)


async def refill(parts: Bench) -> int:
    """Refill the stream of Pongs with what was committed long ago."""
    await parts.database.execute("UPDATE batches SET recorded_at = now() - interval '1 hour'")
    stream = parts.topology.pongs
    async with asyncio.timeout(ENDS_WITHIN_S):
        return await _refill(
            parts.broker, parts.database_url, "beta", stream.name, list(stream.subjects)
        )


async def test_an_event_that_is_too_large_for_its_stream_ends_the_refill_and_is_named(
    broker_url: str, database_url: str
) -> None:
    async with bench(broker_url, database_url) as parts:
        for n in range(8):
            await parts.commit(Fact(f"a-{n}", 1, Pong(f"a-{n}", 1)))
        large = await parts.commit(Fact("large", 1, Pong("large", 1, "x" * 2_000)))
        await change(parts, max_msg_size=1_000)

        with pytest.raises(Refused, match="run `ironcart provision`") as refusal:
            await refill(parts)
        assert large.messages[0].message_id in str(refusal.value)
        assert len(await parts.pongs()) == 8  # One that is refused keeps nothing else back.
        await change(parts, max_msg_size=1_000_000)
        await parts.database.execute("UPDATE batches SET claimed_at = NULL")
        await refill(parts)
        assert len(await parts.marked()) == len(await parts.pongs()) == 9


@pytest.mark.parametrize("commits", [1, 20], ids=["one", "a batch"])
async def test_a_stream_that_is_full_ends_the_refill_with_the_setting_to_raise(
    broker_url: str, database_url: str, commits: int
) -> None:
    async with bench(broker_url, database_url) as parts:
        await change(parts, max_bytes=100)
        for n in range(commits):
            await parts.commit(Fact(f"a-{n}", 1, Pong(f"a-{n}", 1)))

        with pytest.raises(Refused, match="IRONCART_STREAM_BYTES_MAX"):
            await refill(parts)
        assert await parts.pongs() == []
