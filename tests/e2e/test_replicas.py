"""Two replicas of every service on the same durable consumers: nothing is done twice or lost."""

import asyncio
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from benchmarks.bed import Replica
from chaos.outside import delivered_again, parse_metrics
from ironcart.embedded.ports import SERVICES
from shopping import Shop, System, order, until

ORDERS = 400
TOGETHER_MAX = 32
ENDED_WITHIN_S = 120.0
TEST_TIMEOUT_S = 400

pytestmark = [
    pytest.mark.timeout(TEST_TIMEOUT_S),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads an environment"),
]


async def place(urls: list[str], sku: str) -> list[str]:
    """Place orders with both replicas in turn, many at a time, until each is accepted."""
    placed: list[str] = []
    room = asyncio.Semaphore(TOGETHER_MAX)

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        headers = {"Idempotency-Key": f"{sku}-{number}"}
        async with room:
            for attempt in range(100):
                url = urls[(number + attempt) % len(urls)]
                try:
                    async with session.post(
                        f"{url}/orders", json=order(sku), headers=headers
                    ) as answer:
                        if answer.status == 202:
                            placed.append((await answer.json())["order_id"])
                            return
                except aiohttp.ClientError:
                    continue  # Killed: the other one has the same key.
        raise AssertionError(f"order {number} was never accepted")

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for number in range(ORDERS):
            group.create_task(one(session, number))
    return placed


async def taken(url: str) -> Counter[str]:
    """What became of the messages that one process took, by outcome."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        said = parse_metrics(await answer.text())
    found = Counter[str]()
    for (name, labels), value in said.items():
        if name == "ironcart_outcomes_total":
            found[dict(labels)["outcome"]] += int(value)
    return found


async def second(stack: AsyncExitStack, system: System, service: str) -> Replica:
    replica = Replica(service, system.run["services"][service]["pids"][0])
    await stack.enter_async_context(replica.running(system.folder / "logs" / f"{service}-2.log"))
    return replica


async def test_two_replicas_of_every_service_share_the_work_and_do_none_of_it_twice(
    system: System, shop: Shop
) -> None:
    sku = await shop.stocked(100_000)
    repeats_before = await delivered_again(system.run["nats"]["urls"])
    async with AsyncExitStack() as stack:
        replicas = [await second(stack, system, service) for service in SERVICES]
        firsts = {service: await taken(system.url(service)) for service in SERVICES}
        placed = await place([system.url("orders"), replicas[0].url], sku)
        for order_id in placed:
            assert (await shop.ended(order_id, ENDED_WITHIN_S))["status"] == "confirmed"
        system.verify()

        assert len(set(placed)) == ORDERS
        for replica in replicas:
            mine = await taken(replica.url)
            theirs = await taken(system.url(replica.service)) - firsts[replica.service]
            for share in (mine, theirs):
                assert share["done"], f"one {replica.service} did all the work"
                assert not share["duplicate"], replica.service
    assert await delivered_again(system.run["nats"]["urls"]) == repeats_before


async def test_a_replica_of_each_service_is_killed_and_the_others_finish_its_work(
    system: System, shop: Shop
) -> None:
    sku = await shop.stocked(100_000)
    async with AsyncExitStack() as stack:
        replicas = [await second(stack, system, service) for service in SERVICES]
        placing = asyncio.create_task(place([system.url("orders"), replicas[0].url], sku))
        for replica in replicas:

            async def at_work(replica: Replica = replica) -> bool:
                return (await taken(replica.url))["done"] > 0

            await until(at_work)
            os.kill(replica.pid, signal.SIGKILL)
        placed = await placing
        for order_id in placed:
            assert (await shop.ended(order_id, ENDED_WITHIN_S))["status"] == "confirmed"
    assert len(set(placed)) == ORDERS
    system.verify()
