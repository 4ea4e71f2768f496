"""Services killed, frozen and stopped in order, one by one and all together."""

import asyncio
import os
import signal
from functools import partial

from chaos.row import Arena, Felt, Row
from chaos.rows.signals import frozen, ready, replaced, send
from chaos.system import SERVICES

FROZEN_S = (5.0, 7.0)
# Longer than ack_wait (30 s) and than a job's lease (60 s).
ZOMBIE_S = 70.0
LOOKS_FROZEN = ("no answer",)


async def kill(arena: Arena, felt: Felt, *, service: str) -> None:
    """Kill one service; its supervisor starts another."""
    pid = arena.system.pid_of(service)
    felt.inject()
    os.kill(pid, signal.SIGKILL)
    felt.heal()
    await replaced(arena, felt, service, pid)
    felt.saw(f"{service} is ready again", proof=await ready(arena, service))


async def kill_all(arena: Arena, felt: Felt) -> None:
    """Kill the five services at once."""
    pids = {service: arena.system.pid_of(service) for service in SERVICES}
    felt.inject()
    send(list(pids.values()), signal.SIGKILL)
    felt.heal()
    for service, pid in pids.items():
        await replaced(arena, felt, service, pid)
    felt.saw("all five are ready again", proof=await ready(arena, *SERVICES))


async def freeze(arena: Arena, felt: Felt, *, service: str, seconds: float | None = None) -> None:
    """Freeze one service for a while, inside whatever it is doing."""
    hold_s = seconds if seconds is not None else arena.draw.uniform(*FROZEN_S)
    pid = arena.system.pid_of(service)
    felt.inject()
    with frozen(pid):
        said = await arena.outside.answers(service)
        await asyncio.sleep(hold_s)
        still = await arena.outside.answers(service)
    felt.heal()
    felt.saw(
        f"{service} answered nothing for {hold_s:.1f} s (first {said}, last {still})",
        proof=said in LOOKS_FROZEN and still in LOOKS_FROZEN,
    )


async def stop_cleanly(arena: Arena, felt: Felt, *, service: str) -> None:
    """Stop one service as a deployment does: it drains, ends, and another begins."""
    before = await arena.outside.redelivered()
    pid = arena.system.pid_of(service)
    felt.inject()
    os.kill(pid, signal.SIGTERM)
    felt.heal()
    await replaced(arena, felt, service, pid)
    felt.saw(f"{service} is ready again", proof=await ready(arena, service))
    again = await arena.outside.redelivered() - before
    felt.saw(f"{again} messages delivered again")


PROCESS_ROWS = (
    *(Row(f"kill -9 {each}", partial(kill, service=each)) for each in SERVICES),
    *(Row(f"SIGSTOP {each}", partial(freeze, service=each)) for each in SERVICES),
    *(Row(f"SIGTERM {each}", partial(stop_cleanly, service=each)) for each in SERVICES),
    Row("kill -9 all five services", kill_all),
    Row(
        "SIGSTOP payments beyond ack_wait and lease",
        partial(freeze, service="payments", seconds=ZOMBIE_S),
        long=True,
    ),
)
