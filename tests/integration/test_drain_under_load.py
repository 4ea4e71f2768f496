"""Drains under load, one after the other: nothing is delivered that nobody settles."""

import asyncio
from itertools import count

import pytest

from heart_parts import PATIENCE_S, Bench, bench, until, working
from ironcart.embedded.nats_server import NatsServer
from ironcart.toolkit.broker import Broker, puller
from ironcart.toolkit.topology import ACK_WAIT_S

DRAINS = 4
PINGS_AT_ONCE = 40


async def keep_pinging(parts: Bench) -> None:
    """Say Pings, as fast as the broker takes them."""
    for n in count(1):
        await parts.send(*(parts.topology.ping(f"a-{n}-{i}") for i in range(PINGS_AT_ONCE)))


async def drained_under_load(parts: Bench) -> None:
    """Let another replica of beta deal with a few batches, and drain it meanwhile."""
    before = (await parts.consumer_info())["ack_floor"]["stream_seq"]
    async with (
        bench(parts.broker_url, parts.database_url, parts.topology) as replica,
        working(replica) as at_work,
    ):

        async def busy() -> bool:
            info = await parts.consumer_info()
            return bool(info["ack_floor"]["stream_seq"] > before + PINGS_AT_ONCE)

        await until(busy)
        async with asyncio.timeout(PATIENCE_S):
            await at_work.drain()


@pytest.mark.parametrize("heartbeats", [4, 0], ids=["steady", "every pull given up for lost"])
async def test_drains_under_load_have_nothing_delivered_again(
    broker_url: str, database_url: str, heartbeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puller, "HEARTBEATS_MISSED_MAX", heartbeats)
    async with bench(broker_url, database_url) as parts:
        load = asyncio.create_task(keep_pinging(parts))
        try:
            for _ in range(DRAINS):
                await drained_under_load(parts)

                async def settled() -> bool:
                    return not (await parts.consumer_info())["num_ack_pending"]

                # Long before the broker would deliver anything again by itself.
                await until(settled, ACK_WAIT_S / 4)
        finally:
            load.cancel()
        info = await parts.consumer_info()
        assert info["delivered"]["consumer_seq"] == info["delivered"]["stream_seq"] > 0
        assert info["num_redelivered"] == 0
        assert not [line for line in parts.logs if line["log_level"] == "error"]


async def test_a_closed_connection_leaves_nothing_on_its_way(own_broker: NatsServer) -> None:
    listener, speaker = Broker(own_broker.url, "listener"), Broker(own_broker.url, "speaker")
    await listener.connect()
    await speaker.connect()
    try:
        heard = await listener.client.subscribe("said")
        await listener.catch_up()
        for _ in range(20_000):
            await speaker.client.publish("said", b"x" * 256)
        await speaker.close()

        await listener.catch_up()
        assert heard.pending_msgs == 20_000
    finally:
        await listener.close()
