"""One load run from its first order to the end of its last."""

import asyncio
import contextlib
import secrets
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import aiohttp

from ironcart.load.basket import Basket, sku_names
from ironcart.load.figures import Tally
from ironcart.load.log import LoadLog
from ironcart.load.pace import IN_FLIGHT_MAX, send_all
from ironcart.load.plan import InvalidPlanError, Plan
from ironcart.load.sender import REQUEST_TIMEOUT_S, Sender
from ironcart.load.shelf import Shelf
from ironcart.load.show import show
from ironcart.load.trust import known_by
from ironcart.load.watch import Watcher

CONNECT_TIMEOUT_S = 5.0
# Whoever stops us waits; what is under way then ends without us watching.
STOPPED_SETTLE_S = 2.0
SIDE_CONNECTIONS = 4

Tell = Callable[[str], None]


async def run(plan: Plan, *, tell: Tell, quiet: bool) -> Tally:
    """Run the plan; SIGINT and SIGTERM end it early but orderly.

    Raises `InvalidPlanError` when the log folder cannot be written, the log's disk is full, or a
    certificate is not trusted.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop.set)
    try:
        log = LoadLog(plan.log_folder)
    except OSError as error:
        raise InvalidPlanError(f"{error.filename or plan.log_folder}: {error.strerror}") from None
    try:
        return await _Run(plan, log, stop).run(tell, quiet=quiet)
    except ExceptionGroup as errors:
        if (unfit := errors.subgroup(InvalidPlanError)) is not None:
            raise _first(unfit) from None
        # Only the log raises it: what servers and networks do is an answer like any other.
        disk = errors.subgroup(OSError)
        if disk is None:
            raise
        raise InvalidPlanError(f"{log.path}: {_first(disk)}") from None
    finally:
        log.close()
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)


class _Run:
    def __init__(self, plan: Plan, log: LoadLog, stop: asyncio.Event) -> None:
        self._plan = plan
        self._stop = stop
        self._tally = Tally()
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        self._basket = Basket(name, customers=plan.customers, skus=plan.skus, seed=plan.seed)
        self._log = log
        log.write(
            {
                "kind": "run",
                "at": datetime.now(UTC),
                "key_prefix": self._basket.key_prefix,
                "url": plan.target.orders_url,
                "rate": plan.rate,
                "orders": plan.orders,
                "duration_s": plan.duration_s,
            }
        )

    async def run(self, tell: Tell, *, quiet: bool) -> Tally:
        plan, tally = self._plan, self._tally
        at_once = IN_FLIGHT_MAX if plan.rate else plan.connections
        target = plan.target
        known = known_by(target.ca)
        async with (
            _session(2 * at_once, target.orders_key, known) as placing,
            _session(SIDE_CONNECTIONS, target.orders_key, known) as watching,
            _session(SIDE_CONNECTIONS, target.inventory_key, known) as stocking,
        ):
            shelf = None
            if target.inventory_url:
                shelf = Shelf(stocking, target.inventory_url, sku_names(plan.skus))
                if fault := await shelf.fill():
                    tell(f"stock is not topped up yet: {fault}")
            watcher = Watcher(watching, target.orders_url, tally)
            sender = Sender(
                placing,
                target.orders_url,
                self._log,
                tally=tally,
                accepted=watcher.accepted,
            )

            async def place(due_s: float) -> None:
                order = self._basket.next()
                if shelf:
                    shelf.take(order.lines)
                await sender.place(order, due_s)

            beside: list[Coroutine[Any, Any, None]] = [self._stop_retries(sender)]
            if shelf:
                beside.append(shelf.keep())
            if not quiet:
                beside.append(show(plan, tally, tell))
            async with _beside(beside):
                async with _beside([watcher.follow()]):
                    await send_all(plan, place, tally, self._stop)
                stopped = self._stop.is_set()
                await watcher.settle(STOPPED_SETTLE_S if stopped else plan.settle_s, self._stop)
            if watcher.under_way and watcher.trouble:
                tell(f"the last look at the orders failed: {watcher.trouble}")
        return tally

    async def _stop_retries(self, sender: Sender) -> None:
        await self._stop.wait()
        sender.stopping = True


def _first(errors: BaseException) -> BaseException:
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors


def _session(connections: int, key: str, known: ssl.SSLContext | bool) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"} if key else None,
        connector=aiohttp.TCPConnector(limit=connections, ssl=known),
        timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S),
    )


@contextlib.asynccontextmanager
async def _beside(work: list[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run endless work for the length of a `with`."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
        yield
        for task in tasks:
            task.cancel()
