"""Postgres killed, frozen, its sessions ended, its tables locked."""

import asyncio
import signal

from chaos.row import Arena, Felt, Row
from chaos.rows.signals import family, frozen, ready, replaced, send
from chaos.system import SERVICES

FROZEN_S = 5.0
LOCKED_S = (4.0, 6.0)
LOOK_EVERY_S = 0.25
TABLES = ("orders.orders", "inventory.stock", "inventory.reservations", "payments.payments")
WAITING = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted"


async def kill(arena: Arena, felt: Felt) -> None:
    """Kill the database server with all its sessions."""
    pid = arena.system.pid_of("postgres")
    refused = arena.load.count("503", "500", "0")
    felt.inject()
    send(family(pid), signal.SIGKILL)
    felt.heal()
    await replaced(arena, felt, "postgres", pid)
    felt.saw("every service is ready again", proof=await ready(arena, *SERVICES))
    felt.saw(f"{arena.load.count('503', '500', '0') - refused} requests of clients not served")


async def freeze(arena: Arena, felt: Felt) -> None:
    """Freeze the server and every session in the middle of what they do."""
    accepted = arena.load.count("202")
    felt.inject()
    with frozen(arena.system.pid_of("postgres")):
        await asyncio.sleep(1)
        begun = arena.load.count("202")
        await asyncio.sleep(FROZEN_S - 1)
        taken = arena.load.count("202") - begun
    felt.heal()
    felt.saw(
        f"no order accepted while it stood still ({taken} of {begun - accepted} just before)",
        proof=taken == 0,
    )


async def end_sessions(arena: Arena, felt: Felt) -> None:
    """End every session of the services, in whatever transaction they are."""
    felt.inject()
    rows = await arena.outside.fetch(
        "SELECT pg_terminate_backend(pid) AS ended FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    felt.heal()
    ended = sum(bool(row["ended"]) for row in rows)
    felt.saw(f"{ended} sessions ended", proof=ended > 0)
    felt.saw("every service is ready again", proof=await ready(arena, *SERVICES))


async def lock(arena: Arena, felt: Felt) -> None:
    """Lock one table for everybody else for a while."""
    table = arena.draw.choice(TABLES)
    hold_s = arena.draw.uniform(*LOCKED_S)
    waiting = 0
    felt.inject()
    async with arena.outside.database() as connection, connection.transaction():
        await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        until = asyncio.get_running_loop().time() + hold_s
        while asyncio.get_running_loop().time() < until:
            waiting = max(waiting, await connection.fetchval(WAITING))
            await asyncio.sleep(LOOK_EVERY_S)
    felt.heal()
    felt.saw(f"{table} locked {hold_s:.1f} s, {waiting} sessions waiting", proof=waiting > 0)


DATABASE_ROWS = (
    Row("kill -9 Postgres", kill),
    Row("SIGSTOP Postgres 5 s", freeze),
    Row("every session ended (pg_terminate_backend)", end_sessions),
    Row("a table locked", lock),
)
