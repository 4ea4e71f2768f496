"""An outsider judges the audit trail of a system that runs, and was hurt."""

import json
from contextlib import suppress
from typing import Any

import aiohttp

from shopping import Shop, System, until

# What a killed process had in hand comes again after 30 s; until then there is a gap.
JUDGEABLE_WITHIN_S = 120.0


def judged(system: System) -> tuple[int, dict[str, Any]]:
    done = system.cli("audit", "verify", "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


async def test_the_trail_holds_while_orders_come_and_audit_is_killed(
    system: System, shop: Shop
) -> None:
    sku = await shop.stocked()
    first = [await shop.place(sku) for _ in range(5)]
    system.kill("audit")
    orders = [*first, *[await shop.place(sku) for _ in range(5)]]
    for order_id in orders:
        await shop.ended(order_id)

    async def signed() -> bool:
        with suppress(aiohttp.ClientError):  # It is only coming back.
            status, body = await shop.ask("GET", "audit", "/audit/checkpoints?limit=1")
            return status == 200 and bool(body["signed"])
        return False

    await until(signed)

    async def judgeable() -> bool:
        return judged(system)[0] != 2

    await until(judgeable, JUDGEABLE_WITHIN_S)
    code, report = judged(system)
    assert (code, report["faults"], report["unjudged"]) == (0, [], [])
    assert report["checkpoints"]["last"] >= 1
    assert {"ORDERS", "PAYMENTS"} <= {each["stream"] for each in report["streams"]}
