"""Faults at the worst moment: in a transaction, in a charge, when the last pieces are sold."""

import asyncio
import os
import secrets
import signal
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

from chaos.outside import AWAY
from chaos.row import Arena, Felt, Row
from chaos.rows.database import WAITING
from chaos.rows.gateway import STRUCK_WITHIN_S, heal_sandbox, hits
from chaos.rows.signals import frozen, ready, replaced

WRITES_TO = {
    "orders": "orders.orders",
    "inventory": "inventory.reservations",
    "payments": "payments.payments",
    "notifications": "notifications.notifications",
    "audit": "audit.entries",
}
CALLS_OUT = ("payments", "notifications")
HELD_UP_S, ANSWERED_S = 1.5, 1.0
WAITS_WITHIN_S = 15.0
LOOK_EVERY_S = 0.1
SLOW_S = 2.0
CANCELLED_MAX = 5
CANCELLING_S = 4.0
BEING_CHARGED = """
SELECT order_id FROM payments.payments WHERE state = 'charging' AND intent_id IS NOT NULL
ORDER BY updated_at DESC LIMIT $1
"""
PIECES, WANTED = 5, 40
SOLD_OUT_WITHIN_S = 30.0


async def kill_in_transaction(arena: Arena, felt: Felt, *, service: str) -> None:
    """Kill a service while its transaction waits for a lock: all its messages in hand at once.

    One that calls out is killed with calls done and not written down: they are held up first, and
    answered when nothing can be written any more.
    """
    pid = arena.system.pid_of(service)
    async with arena.outside.database() as connection, connection.transaction():
        held_up = frozen(arena.system.pid_of("sandbox")) if service in CALLS_OUT else nullcontext()
        with held_up:
            await asyncio.sleep(HELD_UP_S if service in CALLS_OUT else 0)
            await connection.execute(f"LOCK TABLE {WRITES_TO[service]} IN ACCESS EXCLUSIVE MODE")
        felt.inject()

        async def waits() -> bool:
            return bool(await connection.fetchval(WAITING))

        waited = await arena.outside.until(waits, WAITS_WITHIN_S, every_s=LOOK_EVERY_S)
        await asyncio.sleep(ANSWERED_S if service in CALLS_OUT else 0)
        os.kill(pid, signal.SIGKILL)
    felt.heal()
    felt.saw(f"{service} was waiting for {WRITES_TO[service]} when it was killed", proof=waited)
    await replaced(arena, felt, service, pid)
    felt.saw(f"{service} is ready again", proof=await ready(arena, service))


async def cancel_in_charge(arena: Arena, felt: Felt, *, mode: str, rate: float) -> None:
    """Cancel new orders while the gateway has taken their money, and has not said so or was not
    heard."""
    outside = arena.outside
    before = await hits(arena, mode)
    fault = {"mode": mode, "rate": rate, "seconds": 60, "delay_s": SLOW_S}
    felt.inject()
    await outside.post("sandbox", "/sandbox/faults", fault)
    answers: list[int] = []
    clock = asyncio.get_running_loop().time
    began = clock()
    try:
        # An earlier fault's breaker may be open: then there is nothing to cancel for a while.
        while (took_s := clock() - began) < CANCELLING_S or (
            took_s < STRUCK_WITHIN_S and (202 not in answers or await hits(arena, mode) == before)
        ):
            await asyncio.sleep(LOOK_EVERY_S)
            with suppress(*AWAY):
                rows = await outside.fetch(BEING_CHARGED, CANCELLED_MAX)
                chosen = [str(row["order_id"]) for row in rows]
                answers += await asyncio.gather(*(_cancel(arena, each) for each in chosen))
    finally:
        await heal_sandbox(arena)
        felt.heal()
    taken = answers.count(202)
    struck = await hits(arena, mode) - before
    felt.saw(f"{taken} of {len(answers)} cancellations taken", proof=taken > 0)
    felt.saw(f"{mode} struck {struck} calls", proof=struck > 0)


async def _cancel(arena: Arena, order_id: str) -> int:
    try:
        return await arena.outside.post("orders", f"/orders/{order_id}/cancel")
    except AWAY:
        return 0


async def sell_out(arena: Arena, felt: Felt) -> None:
    """Order far more than there is of one thing, all at once."""
    outside, sku = arena.outside, f"CHAOS-{secrets.token_hex(4)}"
    item = {"sku": sku, "quantity": 1, "unit_price": 9.5}
    order = {"customer_id": "C-chaos", "currency": "EUR", "items": [item]}
    await outside.put("inventory", f"/stock/{sku}", {"on_hand": PIECES})
    felt.inject()
    answers = await asyncio.gather(
        *(outside.send("orders", "/orders", order) for _ in range(WANTED))
    )
    felt.heal()
    placed = [str(body["order_id"]) for status, body in answers if status == 202]
    ends: dict[str, Any] = {}

    async def sold_out() -> bool:
        rows = await outside.fetch(
            "SELECT coalesce(reason, '') AS why, count(*) AS n FROM orders.orders"
            " WHERE order_id = ANY($1::text[]) AND status = 'rejected' GROUP BY 1",
            placed,
        )
        ends.update({row["why"]: row["n"] for row in rows})
        return int(ends.get("out_of_stock", 0)) >= len(placed) - PIECES

    done = await outside.until(sold_out, SOLD_OUT_WITHIN_S)
    rejected = ends.get("out_of_stock", 0)
    felt.saw(
        f"{len(placed)} orders for {PIECES} pieces, {rejected} out of stock",
        proof=done and rejected >= len(placed) - PIECES > 0,
    )


MOMENT_ROWS = (
    *(
        Row(f"kill -9 {each} in its transaction", partial(kill_in_transaction, service=each))
        for each in WRITES_TO
    ),
    Row("cancelled in the middle of a charge", partial(cancel_in_charge, mode="slow", rate=1.0)),
    Row(
        "cancelled while the answer to the charge is lost",
        partial(cancel_in_charge, mode="lose_response", rate=0.5),
    ),
    Row(f"{WANTED} orders at once for {PIECES} pieces", sell_out),
)
