"""The payment gateway and the mail server misbehaving, and their process killed."""

import asyncio
import os
import signal
from functools import partial

import aiohttp

from chaos.row import Arena, Felt, Row
from chaos.rows.signals import replaced

LASTS_S = 6.0
# Longer than a breaker stays open that an earlier fault has opened.
STRUCK_WITHIN_S = 40.0
EXPIRE_EVERY_S = 0.5


async def hits(arena: Arena, mode: str) -> int:
    """Say how often a fault has struck since the sandbox started."""
    found = await arena.outside.get("sandbox", "/sandbox/faults")
    return int(found["hits"][mode])


async def misbehave(
    arena: Arena,
    felt: Felt,
    *,
    mode: str,
    rate: float = 1.0,
    lasts_s: float = LASTS_S,
    opens: bool = False,
    expires: bool = False,
    delay_s: float = 2.0,
) -> None:
    """Switch a fault of the sandbox on for a while; `opens` looks for an open breaker, `expires`
    makes the gateway forget its idempotency keys all the while."""
    outside = arena.outside
    before = await hits(arena, mode)
    fault = {"mode": mode, "rate": rate, "seconds": 600, "delay_s": delay_s}
    felt.inject()
    await outside.post("sandbox", "/sandbox/faults", fault)
    opened = False
    try:
        until = asyncio.get_running_loop().time() + lasts_s
        while asyncio.get_running_loop().time() < until:
            if expires:
                await outside.post("sandbox", "/sandbox/keys/expire")
            if opens and not opened:
                opened = await outside.gauge("ironcart_breaker_state", state="open") > 0
            await asyncio.sleep(EXPIRE_EVERY_S)

        async def struck() -> bool:
            return await hits(arena, mode) > before

        await outside.until(struck, STRUCK_WITHIN_S)
    finally:
        await heal_sandbox(arena)
        felt.heal()
    count = await hits(arena, mode) - before
    felt.saw(f"{mode} struck {count} calls", proof=count > 0)
    if opens:
        felt.saw("the breaker was open" if opened else "the breaker stayed closed")


async def heal_sandbox(arena: Arena) -> None:
    """Switch every fault of the sandbox off."""
    limit = aiohttp.ClientTimeout(total=5)
    url = f"{arena.system.url_of('sandbox')}/sandbox/faults"
    async with arena.outside.session.delete(url, timeout=limit):
        return


async def kill_sandbox(arena: Arena, felt: Felt) -> None:
    """Kill gateway and mail server together; their ledger is on disk."""
    pid = arena.system.pid_of("sandbox")
    felt.inject()
    os.kill(pid, signal.SIGKILL)
    felt.heal()
    await replaced(arena, felt, "sandbox", pid)

    async def back() -> bool:
        await arena.outside.get("sandbox", "/sandbox/faults")
        return True

    felt.saw("the sandbox answers again", proof=await arena.outside.until(back, 30))


GATEWAY_ROWS = (
    Row("gateway down", partial(misbehave, mode="down", opens=True)),
    Row("gateway slow (3 s)", partial(misbehave, mode="slow", delay_s=3.0)),
    Row("gateway hangs", partial(misbehave, mode="hang", rate=0.5)),
    Row("gateway error 500", partial(misbehave, mode="error", opens=True)),
    Row("gateway acts, answer lost", partial(misbehave, mode="lose_response", rate=0.5)),
    Row("gateway declines everything", partial(misbehave, mode="decline")),
    Row(
        "answer lost and idempotency keys expired",
        partial(misbehave, mode="lose_response", rate=0.5, expires=True),
    ),
    Row("kill -9 gateway and mail server", kill_sandbox),
    Row("mail server down", partial(misbehave, mode="mail_down", opens=True)),
    Row("mail server error 4xx", partial(misbehave, mode="mail_error", rate=0.7)),
)
