"""A broker of three nodes: its leader killed or cut off, the disk of one node lost."""

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from chaos.row import Arena, Felt, Row
from chaos.rows.signals import frozen, ready, send
from chaos.system import SERVICES

STREAM = "ORDERS"
CUT_OFF_S = 8.0
GONE_S = 0.5
ELECTED_WITHIN_S = 30.0
HEALED_WITHIN_S = 90.0


async def describe(arena: Arena) -> dict[str, Any]:
    """Return what the nodes that answer say about the stream's cluster; nothing when none does."""
    async with arena.outside.broker() as client:
        reply = await client.request(f"$JS.API.STREAM.INFO.{STREAM}", b"", timeout=2)
    found: dict[str, Any] = json.loads(reply.data).get("cluster", {})
    return found


async def leader(arena: Arena) -> int:
    """Return which node leads the stream, counted from 0."""
    name = str((await describe(arena))["leader"])
    return int(name.rpartition("-")[2]) - 1


async def elected(arena: Arena, old: int) -> bool:
    """Wait until another node than `old` leads."""

    async def other() -> bool:
        return bool((await describe(arena)).get("leader")) and await leader(arena) != old

    return await arena.outside.until(other, ELECTED_WITHIN_S)


async def whole(arena: Arena) -> bool:
    """Wait until every node is there again and has everything."""

    async def current() -> bool:
        replicas = (await describe(arena)).get("replicas") or []
        return len(replicas) == 2 and all(
            each.get("current") and not each.get("offline") for each in replicas
        )

    return await arena.outside.until(current, HEALED_WITHIN_S)


async def kill_leader(arena: Arena, felt: Felt) -> None:
    """Kill the node that leads the stream of orders."""
    node = await leader(arena)
    felt.inject()
    os.kill(int(arena.system.run()["nats"]["pids"][node]), signal.SIGKILL)
    felt.heal()
    felt.saw(f"another node than {node + 1} leads", proof=await elected(arena, node))
    felt.saw("all nodes are there again", proof=await whole(arena))


async def cut_off_leader(arena: Arena, felt: Felt) -> None:
    """Freeze the leader long enough for the others to go on without it, then let it come back."""
    node = await leader(arena)
    accepted = arena.load.count("202")
    felt.inject()
    with frozen(int(arena.system.run()["nats"]["pids"][node])):
        began = asyncio.get_running_loop().time()
        others = await elected(arena, node)
        took_s = asyncio.get_running_loop().time() - began
        await asyncio.sleep(max(0.0, CUT_OFF_S - took_s))
    felt.heal()
    felt.saw(f"another node than {node + 1} led after {took_s:.1f} s", proof=others)
    taken = arena.load.count("202") - accepted
    felt.saw(f"{taken} orders answered with 202 meanwhile", proof=taken > 0)
    felt.saw("all nodes are there again", proof=await whole(arena))


async def lose_disk(arena: Arena, felt: Felt) -> None:
    """Take one node and its disk away: the others fill a new one."""
    run = arena.system.run()["nats"]
    node = arena.draw.randrange(len(run["pids"]))
    felt.inject()
    os.kill(arena.system.pid, signal.SIGSTOP)
    try:
        send([int(run["pids"][node])], signal.SIGKILL)
        await asyncio.sleep(GONE_S)
        _empty(Path(run["stores"][node]))
    finally:
        os.kill(arena.system.pid, signal.SIGCONT)
        felt.heal()

    async def restarted() -> bool:
        return bool(arena.system.run()["nats"]["pids"][node] != run["pids"][node])

    felt.saw(f"node {node + 1} began anew", proof=await arena.outside.until(restarted, 30))
    felt.saw("its copies are whole again", proof=await whole(arena))
    felt.saw("every service is ready", proof=await ready(arena, *SERVICES))


def _empty(store: Path) -> None:
    shutil.rmtree(store)
    store.mkdir()


CLUSTER_ROWS = (
    Row("kill -9 the leader of three nodes", kill_leader),
    Row("the leader of three nodes cut off 8 s", cut_off_leader),
    Row("the disk of one of three nodes lost", lose_disk),
)
