"""A thousand orders, and a kill -9 of each service under load: every invariant holds."""

import asyncio
import json
import signal

import aiohttp

from ironcart.embedded.ports import SERVICES
from ironcart.embedded.status import ACCEPTED, counter
from shopping import Shop, System, until


async def test_a_thousand_orders_by_load_all_end_and_every_invariant_holds(system: System) -> None:
    done = await asyncio.to_thread(system.cli, "load", "--orders", "1000", "--quiet", "--json")

    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["accepted"], summary["terminal"]) == (1000, 1000)
    system.verify()


async def test_each_service_may_be_killed_under_load(system: System, shop: Shop) -> None:
    before = await _accepted(shop)
    load = await asyncio.create_subprocess_exec(
        *system.command("load", "--rate", "30", "--quiet", "--json"),
        stdout=asyncio.subprocess.PIPE,
    )

    async def loaded() -> bool:
        return await _accepted(shop) > before

    await until(loaded)
    for service in SERVICES:
        pid = system.kill(service)

        async def back(service: str = service, pid: int = pid) -> bool:
            if system.run["services"][service]["pids"] == [pid]:
                return False
            try:
                status, _ = await shop.ask("GET", service, "/ready")
            except OSError:
                return False
            return status == 200

        await until(back)
    load.send_signal(signal.SIGTERM)
    said, _ = await load.communicate()

    assert load.returncode == 0, said.decode()
    summary = json.loads(said.splitlines()[-1])
    assert summary["accepted"] > 0
    system.verify()


async def test_a_gateway_outage_opens_the_breaker_and_every_order_ends_after_it(
    system: System, shop: Shop
) -> None:
    sku = await shop.stocked()
    await shop.fault(mode="down", seconds=120)
    placed = [await shop.place(sku) for _ in range(20)]

    await until(lambda: _breaker_is(shop, "open"))
    assert (await shop.order(placed[0]))["status"] in ("pending", "reserved")
    await shop.heal()

    for order_id in placed:
        assert (await shop.ended(order_id, 90))["status"] == "confirmed"
        assert (await shop.charge(order_id))["captured"] == 1999
    assert await _breaker_is(shop, "closed")


async def _breaker_is(shop: Shop, state: str) -> bool:
    metrics = await _metrics(shop, "payments")
    return f'ironcart_breaker_state{{breaker="gateway",state="{state}"}} 1.0' in metrics


async def _accepted(shop: Shop) -> float:
    return counter(await _metrics(shop, "orders"), ACCEPTED)


async def _metrics(shop: Shop, service: str) -> str:
    url = f"{shop.system.url(service)}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.text()
