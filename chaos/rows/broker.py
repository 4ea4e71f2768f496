"""The broker killed, frozen and held down while orders go on being accepted."""

import asyncio
import os
import shutil
import signal
import subprocess
from functools import cache
from pathlib import Path

from chaos.row import Arena, Felt, Row
from chaos.rows.signals import frozen, ready, replaced
from chaos.system import CLI, SERVICES

FROZEN_S = 5.0
DOWN_S = 10.0
KILL_EVERY_S = 0.1
GONE_S = 0.3
REFILLED_WITHIN_S = 30.0


async def waiting_to_travel(arena: Arena) -> float:
    """Count the commits whose events have not reached the broker."""
    return await arena.outside.gauge("ironcart_outbox_waiting_batches")


async def connections_lost(arena: Arena) -> float:
    """Count the services that say they have no broker."""
    return len(SERVICES) - await arena.outside.gauge("ironcart_broker_connected")


async def kill(arena: Arena, felt: Felt) -> None:
    """Kill the broker; its supervisor starts it on the same store."""
    pid = arena.system.pid_of("broker")
    felt.inject()
    os.kill(pid, signal.SIGKILL)
    felt.heal()
    lost = await connections_lost(arena)
    await replaced(arena, felt, "broker", pid)
    felt.saw(f"{lost:.0f} services had lost it at the first look")
    felt.saw("every service is ready again", proof=await ready(arena, *SERVICES))


async def freeze(arena: Arena, felt: Felt) -> None:
    """Freeze the broker: publishes time out, their outcome unknown."""
    accepted = arena.load.count("202")
    highest = 0.0
    felt.inject()
    with frozen(arena.system.pid_of("broker")):
        until = asyncio.get_running_loop().time() + FROZEN_S
        while asyncio.get_running_loop().time() < until:
            highest = max(highest, await waiting_to_travel(arena))
            await asyncio.sleep(KILL_EVERY_S)
    felt.heal()
    felt.saw(f"{highest:.0f} commits waited for it", proof=highest > 0)
    felt.saw(f"{arena.load.count('202') - accepted} orders answered with 202 meanwhile")


async def hold_down(arena: Arena, felt: Felt) -> None:
    """Kill the broker again each time it comes back, for a while."""
    accepted = arena.load.count("202")
    killed: set[int] = set()
    highest = lost = 0.0
    felt.inject()
    until = asyncio.get_running_loop().time() + DOWN_S
    while asyncio.get_running_loop().time() < until:
        pid = arena.system.pid_of("broker")
        if pid not in killed:
            killed.add(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        highest = max(highest, await waiting_to_travel(arena))
        lost = max(lost, await connections_lost(arena))
        await asyncio.sleep(KILL_EVERY_S)
    felt.heal()
    taken = arena.load.count("202") - accepted
    felt.saw(f"killed {len(killed)} times, {lost:.0f} services without it", proof=lost > 0)
    felt.saw(f"{highest:.0f} commits waited for it", proof=highest > 0)
    felt.saw(f"{taken} orders answered with 202 meanwhile", proof=taken > 0)
    felt.saw("every service is ready again", proof=await ready(arena, *SERVICES))


def _empty(store: str) -> None:
    shutil.rmtree(store)
    Path(store).mkdir()


async def wipe(arena: Arena, felt: Felt) -> None:
    """Take the broker and its disk away; `ironcart republish` refills a new one."""
    system = arena.system
    pid = system.pid_of("broker")
    felt.inject()
    # The supervisor must not start a broker on a store that is half gone.
    os.kill(system.pid, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(GONE_S)
        for store in system.run()["nats"]["stores"]:
            _empty(store)
    finally:
        os.kill(system.pid, signal.SIGCONT)
    await replaced(arena, felt, "broker", pid)

    async def empty() -> bool:
        async with arena.outside.broker() as client:
            return not await client.jetstream(timeout=2).streams_info()

    felt.saw("the broker was empty", proof=await arena.outside.until(empty, REFILLED_WITHIN_S))
    said = await system.ironcart("republish")
    felt.heal()
    last = (said.out.strip() or said.err.strip()).splitlines()[-1:]
    felt.saw(f"republish: {' '.join(last)}", proof=said.code == 0)
    felt.saw("every service is ready again", proof=await ready(arena, *SERVICES))


@cache
def lacks_republish() -> str:
    """Say that there is no such command, if there is none."""
    said = subprocess.run([*CLI, "republish", "--help"], capture_output=True, check=False)  # noqa: S603 - words of ours
    return "" if said.returncode == 0 else "`ironcart republish` does not exist"


BROKER_ROWS = (
    Row("kill -9 the broker", kill),
    Row("SIGSTOP the broker 5 s", freeze),
    Row("broker held down 10 s", hold_down),
    Row("the broker's disk wiped, republished", wipe, lacks_republish),
)
