"""The puller on a real broker: never more than its slots, and it goes on after every fault."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from heart_parts import Topology, bench, consumer_is_gone, until
from ironcart.embedded.nats_server import NatsServer
from ironcart.toolkit.broker import Broker, Delivery, Puller, publish
from ironcart.toolkit.broker import puller as pullers
from ironcart.toolkit.broker.puller import ACK
from ironcart.toolkit.outcomes import Refused

MESSAGES = 60
SLOTS = 10


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[Broker, Topology]]:
    broker, topology = Broker(url, "beta"), Topology()
    await broker.connect()
    await topology.provision(broker)
    try:
        yield broker, topology
    finally:
        await broker.close()


@asynccontextmanager
async def pulling(broker: Broker, topology: Topology, slots: int = SLOTS) -> AsyncIterator[Puller]:
    puller = Puller(broker, topology.pings.name, "beta", slots=slots)
    task = asyncio.create_task(puller.run())
    try:
        yield puller
    finally:
        task.cancel()
        await asyncio.wait([task])


async def fill(broker: Broker, topology: Topology, first: int = 1, count: int = MESSAGES) -> None:
    await publish(broker, [topology.ping("a", n) for n in range(first, first + count)])


async def settle(puller: Puller, batch: list[Delivery]) -> None:
    for delivery in batch:
        await puller.send(delivery, ACK)
    puller.release(len(batch))


async def take_until(puller: Puller, last_seq: int) -> list[int]:
    """Take and acknowledge until the message with `last_seq` has come."""
    seqs: list[int] = []
    async with asyncio.timeout(20):
        while last_seq not in seqs:
            batch = await puller.take(SLOTS)
            seqs += [each.stream_seq for each in batch]
            await settle(puller, batch)
    return seqs


async def state(broker: Broker, topology: Topology) -> dict[str, int]:
    info = await broker.api(f"CONSUMER.INFO.{topology.pings.name}.beta")
    return {key: info[key] for key in ("num_pending", "num_ack_pending", "num_redelivered")}


async def test_no_more_messages_than_slots_are_ever_unreleased(broker_url: str) -> None:
    async with connected(broker_url) as (broker, topology):
        await fill(broker, topology)
        async with pulling(broker, topology) as puller:
            held: list[Delivery] = []

            async def full() -> bool:
                held.extend(await puller.take(3))
                return len(held) == SLOTS

            await until(full)
            found = await state(broker, topology)  # The broker has answered after the last pull.
            assert found["num_ack_pending"] == SLOTS
            assert puller.waiting == 0
            await settle(puller, held[:4])

            async def refilled() -> bool:
                return (await state(broker, topology))["num_pending"] == MESSAGES - SLOTS - 4

            await until(refilled)
            assert (await state(broker, topology))["num_ack_pending"] == SLOTS


async def test_every_message_is_delivered_once_and_in_order_when_nothing_fails(
    broker_url: str,
) -> None:
    async with connected(broker_url) as (broker, topology):
        await fill(broker, topology)
        async with pulling(broker, topology) as puller:
            assert await take_until(puller, MESSAGES) == list(range(1, MESSAGES + 1))


@pytest.mark.parametrize("crash", [False, True], ids=["restart", "kill -9"])
async def test_it_goes_on_after_the_broker_was_away(own_broker: NatsServer, crash: bool) -> None:
    async with connected(own_broker.url) as (broker, topology):
        await fill(broker, topology, count=20)
        async with pulling(broker, topology) as puller:
            await take_until(puller, 20)  # A pull is now open, and is lost with the broker.
            if crash:
                own_broker.kill()
            else:
                own_broker.terminate()
            own_broker.start()

            async def back() -> bool:
                return bool(broker.client.stats["reconnects"] and broker.connected)

            await until(back)
            await fill(broker, topology, first=21, count=20)
            found = await take_until(puller, 40)
            # Acks are not synced: after a crash the broker may deliver old messages again.
            assert [seq for seq in found if seq > 20] == list(range(21, 41))
            assert crash or len(found) == 20


async def test_a_deleted_consumer_is_refused(broker_url: str) -> None:
    async with connected(broker_url) as (broker, topology):
        puller = Puller(broker, topology.pings.name, "beta", slots=SLOTS)
        task = asyncio.create_task(puller.run())
        await fill(broker, topology, count=1)
        await settle(puller, await puller.take(1))
        await broker.api(f"CONSUMER.DELETE.{topology.pings.name}.beta")

        with pytest.raises(Refused, match="run `ironcart provision`"):
            await asyncio.wait_for(task, 20)


async def test_a_consumer_deleted_while_no_pull_was_open_is_refused(
    broker_url: str, database_url: str
) -> None:
    async with bench(broker_url, database_url) as parts:
        puller = Puller(parts.broker, parts.topology.pings.name, "beta", slots=1)
        task = asyncio.create_task(puller.run())
        await parts.send(parts.topology.ping("a"))
        batch = await puller.take(1)
        await parts.broker.api(f"CONSUMER.DELETE.{parts.topology.pings.name}.beta")
        assert await consumer_is_gone(parts)
        puller.release(len(batch))

        with pytest.raises(Refused, match="run `ironcart provision`"):
            await asyncio.wait_for(task, 20)


async def test_a_paused_puller_takes_nothing_until_it_goes_on(broker_url: str) -> None:
    async with connected(broker_url) as (broker, topology), pulling(broker, topology) as puller:
        await fill(broker, topology, count=1)
        await take_until(puller, 1)
        puller.pause(True)
        await fill(broker, topology, first=2, count=MESSAGES)
        # What was asked for before may still arrive, but no more than that.
        await until(lambda: asyncio.sleep(0, puller.waiting >= SLOTS - 1))
        found = await state(broker, topology)
        assert found["num_pending"] == MESSAGES - puller.waiting
        puller.pause(False)
        await take_until(puller, MESSAGES + 1)


async def test_draining_delivers_what_was_asked_for_and_nothing_again(broker_url: str) -> None:
    async with connected(broker_url) as (broker, topology):
        puller = Puller(broker, topology.pings.name, "beta", slots=SLOTS)
        task = asyncio.create_task(puller.run())
        await fill(broker, topology, count=1)
        await settle(puller, await puller.take(1))
        await fill(broker, topology, first=2, count=4)
        puller.stop()
        seen = []
        while batch := await puller.take(SLOTS):
            seen += [each.stream_seq for each in batch]
            await settle(puller, batch)
        await task

        assert seen == [2, 3, 4, 5]
        await fill(broker, topology, first=6, count=1)
        found = await state(broker, topology)
        assert found == {"num_pending": 1, "num_ack_pending": 0, "num_redelivered": 0}
        async with pulling(broker, topology) as another:
            assert await take_until(another, 6) == [6]


async def test_a_drain_takes_in_what_is_here_and_unread_although_the_broker_seemed_silent(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(broker_url) as (broker, topology):
        puller = Puller(broker, topology.pings.name, "beta", slots=SLOTS)
        task = asyncio.create_task(puller.run())
        await fill(broker, topology, count=1)
        await settle(puller, await puller.take(1))

        async def deliver() -> None:
            other = Broker(broker_url, "alpha")
            await other.connect()
            await fill(other, topology, first=2, count=4)
            await until(lambda: _delivered(other, topology, 5))
            await other.close()

        # A process that gets no time: nothing of what has come is read, and no heartbeat is seen.
        monkeypatch.setattr(pullers, "HEARTBEATS_MISSED_MAX", 0)
        starving = threading.Thread(target=lambda: asyncio.run(deliver()))
        starving.start()
        starving.join()
        puller.stop()
        seen = []
        while batch := await puller.take(SLOTS):
            seen += [each.stream_seq for each in batch]
            await settle(puller, batch)
        await task

        assert seen == [2, 3, 4, 5]
        assert (await state(broker, topology))["num_ack_pending"] == 0


async def _delivered(broker: Broker, topology: Topology, count: int) -> bool:
    info = await broker.api(f"CONSUMER.INFO.{topology.pings.name}.beta")
    return bool(info["delivered"]["consumer_seq"] == count)
