"""The floor: what the broker and the database alone need for an order, with no application.

Five processes, one for each service, make the same writes through the services' own statements, the
same atomic publishes of messages as large (6 an order) and the same deliveries with acks (13), on
the same settings. They decide nothing, read nothing but ids, call nobody, mail nothing, log
nothing, and get orders from nowhere: no HTTP, gateway, mail, encryption, checks or hashes.
"""

import argparse
import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvloop

from benchmarks.bed import CannotMeasure
from benchmarks.floor_hand import Hand
from benchmarks.floor_services import HANDS
from benchmarks.stage import Stage
from ironcart.embedded.process import launch_argv
from ironcart.toolkit.broker import Broker
from ironcart.toolkit.database import Database
from ironcart.toolkit.settings import environment

ORDERS = 30_000
WARM_UP_ORDERS = 3_000
# Messages a batch, at most: about what the real system comes to under full load.
BATCH = 150
PER_SECOND_MIN = 50
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
LOG_CHARACTERS = 500
US_PER_S, S_PER_MIN = 1_000_000, 60
READY = b"ready\n"
EVENTS_AN_ORDER = 6
_DONE = """
SELECT (SELECT count(*) FROM orders.orders WHERE status = 'confirmed'),
       (SELECT count(*) FROM inventory.reservations WHERE state = 'committed'),
       (SELECT count(*) FROM payments.payments WHERE state = 'succeeded'),
       (SELECT count(*) FROM notifications.notifications WHERE state = 'sent'),
       (SELECT count(*) FROM audit.links)
"""


@dataclass(slots=True)
class Floor:
    """One measurement; CPU in microseconds an order, by process; messages a batch, by process."""

    orders: int
    batch: int
    seconds: float
    deliveries_an_order: float
    cpu_us_an_order: dict[str, float]
    batches: dict[str, float]

    @property
    def per_minute(self) -> float:
        """Orders a minute, from the first write to the last ack."""
        return self.orders / self.seconds * S_PER_MIN

    @property
    def cpu_us(self) -> float:
        """CPU of all processes together, microseconds an order."""
        return sum(self.cpu_us_an_order.values())

    @property
    def cores(self) -> float:
        """Cores that were busy, on average; well below what there are, CPU was not the limit."""
        return self.cpu_us * self.orders / US_PER_S / self.seconds

    def lines(self) -> list[str]:
        """Return it for a person."""
        parts = ", ".join(f"{name} {used:,.0f}" for name, used in self.cpu_us_an_order.items())
        sizes = ", ".join(f"{name} {size:.0f}" for name, size in self.batches.items())
        batches = f"at most {self.batch} messages a batch: {sizes}"
        took = f"{self.orders:,} orders in {self.seconds:.1f} s"
        return [
            f"  {took}: {self.per_minute:,.0f} a minute, {self.cores:.2f} cores busy",
            f"  CPU us an order {self.cpu_us:,.0f}: {parts}",
            f"  {self.deliveries_an_order:g} deliveries an order; {batches}",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine."""
        kept = {name: getattr(self, name) for name in self.__slots__}
        return {**kept, "per_minute": self.per_minute, "cpu_us": self.cpu_us, "cores": self.cores}


async def measure(
    orders: int = ORDERS, batch: int = BATCH, warm_up_orders: int = WARM_UP_ORDERS
) -> Floor:
    """Take `orders` through everything on fresh servers, after some that are not counted."""
    async with Stage() as stage:
        await stage.fill()
        async with AsyncExitStack() as stack:
            hands = {
                name: await stack.enter_async_context(_hand(stage, name, batch)) for name in HANDS
            }
            await _through(stage, hands, warm_up_orders)
            before, began = stage.use(), time.monotonic()
            said = await _through(stage, hands, orders)
            seconds = time.monotonic() - began
            used = {name: used_s - before[name] for name, used_s in stage.use().items()}
        await _check(stage, orders + warm_up_orders)
    used |= {name: each["cpu_s"] for name, each in said.items()}
    return Floor(
        orders=orders,
        batch=batch,
        seconds=round(seconds, 3),
        deliveries_an_order=sum(each["messages"] for each in said.values()) / orders,
        cpu_us_an_order={name: round(s * US_PER_S / orders, 1) for name, s in used.items()},
        batches={name: round(each["messages"] / each["batches"], 1) for name, each in said.items()},
    )


@asynccontextmanager
async def _hand(stage: Stage, name: str, batch: int) -> AsyncIterator[Process]:
    """Run one process; it takes orders by its input, says what they took, and ends with it."""
    child = stage.python(name, "benchmarks.floor", "--hand", name, "--batch", str(batch))
    with child.log.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *launch_argv(child), stdin=PIPE, stdout=PIPE, stderr=log, env=child.env
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            if await process.stdout.readline() != READY:
                raise CannotMeasure(f"{name} did not start: {_last_words(stage, name)}")
        yield process
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()


async def _through(
    stage: Stage, hands: Mapping[str, Process], orders: int
) -> dict[str, dict[str, float]]:
    """Have all of them do their part for so many orders; returns what each says of it."""
    try:
        async with asyncio.timeout(START_TIMEOUT_S + orders / PER_SECOND_MIN):
            async with asyncio.TaskGroup() as group:
                tasks = {
                    name: group.create_task(_one_through(stage, name, hand, orders))
                    for name, hand in hands.items()
                }
    except TimeoutError:
        raise CannotMeasure(f"{orders} orders take too long") from None
    except ExceptionGroup as errors:
        raise CannotMeasure(str(errors.exceptions[0])) from errors
    return {name: task.result() for name, task in tasks.items()}


async def _one_through(stage: Stage, name: str, hand: Process, orders: int) -> dict[str, float]:
    assert hand.stdin is not None
    assert hand.stdout is not None
    hand.stdin.write(b"%d\n" % orders)
    line = await hand.stdout.readline()
    if not line:
        raise CannotMeasure(f"{name} broke off: {_last_words(stage, name)}")
    said: dict[str, float] = json.loads(line)
    return said


def _last_words(stage: Stage, name: str) -> str:
    return (stage.folder / f"{name}.log").read_text()[-LOG_CHARACTERS:]


async def _check(stage: Stage, orders: int) -> None:
    """Raise `CannotMeasure` unless everything that an order needs is there, for every order."""
    async with stage.database() as database:
        row = await database.fetchrow(_DONE)
    wanted = (*(orders,) * 4, EVENTS_AN_ORDER * orders)
    if row is None or tuple(row) != wanted:
        raise CannotMeasure(f"there is {row}, and not {wanted}")


async def work(name: str, batch: int, environ: Mapping[str, str]) -> None:
    """Be one of the five: for each number on our input, do our part for so many orders."""
    database = Database(environ["IRONCART_DATABASE_URL"], name, f"floor-{name}")
    broker = Broker(environ["IRONCART_NATS_URL"], name)
    await broker.connect()
    await database.connect()
    hand = HANDS[name](database, broker, batch)
    async with asyncio.TaskGroup() as group:
        for puller in hand.pullers.values():
            group.create_task(puller.run())
        _say(READY)
        while line := await asyncio.to_thread(sys.stdin.readline):
            _say(json.dumps(await _part(hand, int(line))).encode() + b"\n")
        for puller in hand.pullers.values():
            puller.stop()
    await broker.close()
    await database.close()


async def _part(hand: Hand, orders: int) -> dict[str, float]:
    hand.tally.clear()
    before_s = time.process_time()
    async with asyncio.TaskGroup() as group:
        for loop in hand.loops(orders):
            group.create_task(loop)
    return {"cpu_s": time.process_time() - before_s, **hand.tally}


def _say(words: bytes) -> None:
    sys.stdout.buffer.write(words)
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or be one of the five."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor")
    parser.add_argument("--orders", type=int, default=ORDERS)
    parser.add_argument("--batch", type=int, default=BATCH, help="messages a batch, at most")
    parser.add_argument("--warm-up", type=int, default=WARM_UP_ORDERS, help="orders beforehand")
    parser.add_argument("--hand", choices=tuple(HANDS), help="be one of the five processes")
    given = parser.parse_args(argv)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if given.hand:
            runner.run(work(given.hand, given.batch, environment()))
            return 0
        try:
            found = runner.run(measure(given.orders, given.batch, given.warm_up))
        except CannotMeasure as error:
            sys.stderr.write(f"benchmarks: {error}\n")
            return 1
    sys.stdout.write("\n".join(["floor", *found.lines(), ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
