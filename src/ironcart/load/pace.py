"""When orders are placed: by the clock (open loop), or as fast as answers come (closed loop)."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from ironcart.load.figures import Tally
from ironcart.load.plan import Plan

# More orders than this in flight are not sent: they would only measure our own queue.
IN_FLIGHT_MAX = 1_000
LATE_AFTER_S = 0.25
# A generator that lags behind its clock must still let its requests run.
YIELD_EVERY = 32

Place = Callable[[float], Awaitable[None]]


async def send_all(plan: Plan, place: Place, tally: Tally, stop: asyncio.Event) -> None:
    """Place the plan's orders until done or `stop`; returns when the last one was answered.

    `place(due)` gets the monotonic moment the order was due. With a rate, an order that finds
    `IN_FLIGHT_MAX` in flight is counted as not sent; if the plan is for a number of orders it waits
    instead and is counted as late, as is one that the generator itself was too slow for.
    """
    tally.started_at = time.monotonic()
    loop = _by_the_clock if plan.rate else _as_answered
    try:
        await loop(plan, place, tally, stop)
    finally:
        tally.sending_s = time.monotonic() - tally.started_at


async def _by_the_clock(plan: Plan, place: Place, tally: Tally, stop: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        number = 0
        while not stop.is_set() and not (plan.orders and number >= plan.orders):
            due_s = tally.started_at + number / plan.rate
            if _over(plan, number / plan.rate):
                break
            await _wait(stop, due_s - time.monotonic())
            if stop.is_set():
                break
            number += 1
            if slots.locked() and not plan.orders:
                tally.not_sent += 1
                continue
            await slots.acquire()
            tally.late += time.monotonic() - due_s > LATE_AFTER_S
            group.create_task(_placed(place, due_s, slots))
            if number % YIELD_EVERY == 0:
                await asyncio.sleep(0)


async def _as_answered(plan: Plan, place: Place, tally: Tally, stop: asyncio.Event) -> None:
    left = plan.orders

    async def worker() -> None:
        nonlocal left
        while not stop.is_set() and not _over(plan, time.monotonic() - tally.started_at):
            if plan.orders:
                if left == 0:
                    return
                left -= 1
            await place(time.monotonic())

    async with asyncio.TaskGroup() as group:
        for _ in range(plan.connections):
            group.create_task(worker())


def _over(plan: Plan, elapsed_s: float) -> bool:
    return not plan.orders and bool(plan.duration_s) and elapsed_s >= plan.duration_s


async def _placed(place: Place, due_s: float, slots: asyncio.Semaphore) -> None:
    try:
        await place(due_s)
    finally:
        slots.release()


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    """Sleep, but not past `stop`."""
    if seconds <= 0:
        return
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
