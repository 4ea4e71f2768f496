"""Two replicas of every service on the same durable consumers: nothing is done twice or lost."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest

from chaos.outside import delivered_again, parse_metrics
from ironcart.embedded.ports import SERVICES
from replicas import seconds
from shopping import Shop, System, order, until

SHARED = 250
# Enough to go on until the last of five is killed.
UNDER_KILLS = 400
TOGETHER_MAX = 32
ENDED_WITHIN_S = 120.0
TEST_TIMEOUT_S = 400

pytestmark = [
    pytest.mark.timeout(TEST_TIMEOUT_S),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads an environment"),
]


async def place(urls: list[str], sku: str, orders: int) -> list[str]:
    """Place orders with both replicas in turn, many at a time, until each is accepted."""
    placed: list[str] = []
    room = asyncio.Semaphore(TOGETHER_MAX)

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        headers = {"Idempotency-Key": f"{sku}-{orders}-{number}"}
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
        for number in range(orders):
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


async def work_of(urls: Mapping[str, str]) -> dict[str, Counter[str]]:
    return {service: await taken(url) for service, url in urls.items()}


async def all_confirmed(shop: Shop, placed: list[str]) -> None:
    for order_id in placed:
        assert (await shop.ended(order_id, ENDED_WITHIN_S))["status"] == "confirmed"


async def test_two_replicas_of_every_service_share_the_work_and_one_of_each_may_be_killed(
    system: System, shop: Shop
) -> None:
    sku = await shop.stocked(100_000)
    repeats_before = await delivered_again(system.run["nats"]["urls"])
    async with seconds(system) as others:
        doors = [system.url("orders"), others["orders"].url]
        theirs = {service: system.url(service) for service in SERVICES}
        mine = {service: others[service].url for service in SERVICES}
        before = await work_of(theirs)
        placed = await place(doors, sku, SHARED)
        await all_confirmed(shop, placed)
        system.verify()

        assert len(set(placed)) == SHARED
        theirs_now, shared = await work_of(theirs), await work_of(mine)
        for service in SERVICES:
            for share in (shared[service], theirs_now[service] - before[service]):
                assert share["done"], f"one {service} did all the work"
                assert not share["duplicate"], service
        assert await delivered_again(system.run["nats"]["urls"]) == repeats_before

        placing = asyncio.create_task(place(doors, sku, UNDER_KILLS))
        for service in SERVICES:

            async def at_work(service: str = service) -> bool:
                return (await taken(mine[service]))["done"] > shared[service]["done"]

            await until(at_work)
            os.kill(others[service].process.pid, signal.SIGKILL)
        placed += await placing
    await all_confirmed(shop, placed)
    assert len(set(placed)) == SHARED + UNDER_KILLS
    system.verify()
