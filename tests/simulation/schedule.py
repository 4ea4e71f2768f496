"""One schedule: services, customers and faults until everything has healed and is quiet."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from ironcart.toolkit.outcomes import Unavailable
from simulation import faults
from simulation.broker import JetStream
from simulation.clock import Process, SimulatedLoop, virtual
from simulation.database import IDLE_IN_TRANSACTION_S, Server
from simulation.judge import judge, unfinished
from simulation.toy import SUBJECTS, Alpha, Beta, Outside, Ping, Toy
from simulation.world import Weather, World

QUIET_S_MAX = 400.0
RESTART_S_MAX = 2.0
ACTIONS = ("ok", "ok", "ok", "job", "job", "retry", "park", "bug")
CANONICAL = ("ok", "job", "park", "retry", "ok", "ok")
DEDUPE_S, DEDUPE_SHORT_S = 120.0, 1.5
ACK_WAIT_S = 8.0
OPERATIONS = 3
# What may keep a drain from settling everything.
TROUBLES = (
    "COMMIT whose answer was lost",
    "broker outage",
    "connection cut",
    "database outage",
    "freeze",
    "freeze beyond a lease",
    "request to the broker that was lost",
    "statement that was lost",
    "waited too long for a lock",
)


@dataclass(frozen=True)
class Plan:
    """What tells one schedule from another."""

    seed: int
    crash: str = ""
    crash_at: int = 0
    tracing: bool = False

    @property
    def canonical(self) -> bool:
        """The short one without any fault, except for one crash at a known step."""
        return bool(self.crash)


@dataclass
class Verdict:
    """How it went."""

    seed: int
    broken: list[str]
    seen: dict[str, int]
    trace: list[str]
    steps: dict[str, int]


class Schedule:
    """The parts of one schedule."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        rng = random.Random(plan.seed)
        shuffled = not plan.canonical
        self.loop = SimulatedLoop(rng, shuffled=shuffled)  # type: ignore[abstract] # enough of it
        self.world = World(self.loop, rng, plan.tracing, quiet_net=plan.canonical)
        short = not plan.canonical and rng.random() < 0.15
        self.exactly_once_in_stream = not short
        self.jetstream = JetStream(self.world, DEDUPE_SHORT_S if short else DEDUPE_S, ACK_WAIT_S)
        self.jetstream.stream("PINGS", SUBJECTS["Ping"])
        self.jetstream.stream("PONGS", SUBJECTS["Pong"])
        self.jetstream.stream("DEADLETTERS", "dlq")
        self.jetstream.consumer("PINGS", "beta")
        self.jetstream.consumer("PONGS", "alpha")
        self.databases = {name: Server(self.world, name) for name in ("alpha", "beta")}
        self.outside = Outside()
        self.running: dict[str, Toy] = {}
        self.healing = False
        self._steps = {"alpha": 0, "beta": 0}
        actions = CANONICAL if plan.canonical else rng.choices(ACTIONS, k=rng.randint(4, 12))
        self.pings = [Ping(f"p{n}", action) for n, action in enumerate(actions)]
        for ping in self.pings:
            if ping.action == "retry":
                self.outside.retries_left[ping.name] = 1 if plan.canonical else rng.randint(1, 2)

    # Processes.

    def start(self, name: str) -> None:
        """Start a process, as the supervisor does."""
        process = Process(self.loop, name)
        process.context.run(self._build, name, process)

    def _build(self, name: str, process: Process) -> None:
        server = self.databases[name.partition("-")[0]]
        if name == "alpha":
            toy: Toy = Alpha(self.world, process, self.jetstream, server)
        else:
            toy = Beta(self.world, process, self.jetstream, server, self.outside)
        if self.plan.crash == name and process.steps == 0 and not self._steps[name]:
            process.crash_at = self.plan.crash_at
        toy.work = process.spawn(toy.run())
        toy.work.add_done_callback(lambda task: self._ended(toy, task))
        process.on_crash.append(lambda: self._crashed(name, toy))
        self.running[name] = toy
        self.world.say("starts", process)

    def _ended(self, toy: Toy, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and not self.loop._unwinding:
            self.world.broken.append(f"a process ended by itself: {task.exception()!r}")

    def _crashed(self, name: str, toy: Toy) -> None:
        self.world.note("crash")
        self.world.say("CRASHES", toy.process)
        self._steps[name.partition("-")[0]] = toy.process.steps
        if self.running.get(name) is toy:
            delay_s = self.world.rng.uniform(0.0, RESTART_S_MAX)
            self.loop.outside(delay_s, self.start, name)
            del self.running[name]

    def crash(self, name: str) -> None:
        """kill -9."""
        self.running[name].process.crash()

    def freeze(self, name: str, for_s: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        toy = self.running[name]
        self.world.note("freeze" if for_s < faults.LONG_FREEZE_S else "freeze beyond a lease")
        toy.process.freeze()
        self.loop.outside(IDLE_IN_TRANSACTION_S, self._idle, toy)
        self.loop.outside(for_s, toy.process.thaw)

    def _idle(self, toy: Toy) -> None:
        if toy.process.frozen:
            toy.pool.idle_too_long()

    def drain(self, name: str) -> None:
        """SIGTERM, and a new process in its place."""
        toy = self.running.pop(name)
        self.world.note("drain")
        self.world.say("drains", toy.process)
        before = -1 if self._unwell(toy) else self._troubles()
        toy.process.spawn(toy.drain()).add_done_callback(lambda _: self._drained(toy, before))
        self.start(name)

    def _drained(self, toy: Toy, before: int) -> None:
        if toy.drained:
            self._look_for_leftovers(toy)
            if before == self._troubles():
                self.world.note("drain that nothing disturbed")
                # What was under way when an earlier connection broke, or when an ack may have been
                # lost on its way, is nobody's fault.
                here = (toy.client, toy.client.stats["reconnects"])
                if here in [
                    (pending.client, pending.connection)
                    for consumer in self.jetstream.consumers.values()
                    for pending in consumer.pending.values()
                    if pending.again_at <= self.loop.time() + ACK_WAIT_S and not pending.naked
                    if pending.again_at - ACK_WAIT_S > toy.client.lost_at
                ]:
                    self.world.broken.append("an undisturbed drain left messages unsettled")
            toy.process.exit()

    def _look_for_leftovers(self, toy: Toy) -> None:
        if toy.consumer.puller._held or toy.consumer.puller.waiting:
            self.world.broken.append("a drain left messages in hand")

    def _unwell(self, toy: Toy) -> bool:
        well = toy.client.is_connected and self.databases[toy.chassis.service].up
        return not well or toy.process.frozen or self.world.weather != Weather()

    def _troubles(self) -> int:
        return sum(self.world.seen[what] for what in TROUBLES)

    def broker_outage(self, for_s: float) -> None:
        """The broker is away for a while."""
        self.jetstream.stop()
        self.loop.outside(for_s, self.jetstream.start)

    def _operate(self) -> None:
        """What was wrong with a parked message has been put right: a person releases it."""
        server = self.databases["beta"]
        if server.holder is not None:
            self.loop.outside(0.05, self._operate)
            return
        for no, row in list(server.tables.rows["parked"].items()):
            named = next(ping for ping in self.pings if ping.name == row["aggregate_id"])
            known = row["state"] == "parked" and row["letter_seq"]  # A person goes by the letter.
            if known and named.action == "park":
                self.outside.mended.add(named.name)
                server.tables.change("parked", no, state="released", due_at=self.loop.time())

    # Customers.

    async def _customer(self, ping: Ping) -> None:
        if not self.plan.canonical:
            await asyncio.sleep(self.world.rng.choice((0.5, 0.5, self.world.rng.uniform(0, 8))))
        while True:
            alpha = self.running.get("alpha")
            if isinstance(alpha, Alpha) and alpha.process.running:
                answer = alpha.process.spawn(alpha.accept(ping))
                await asyncio.wait([answer], timeout=2.0)
                if answer.done() and not answer.cancelled() and answer.exception() is None:
                    self.outside.accepted.append(ping.name)
                    return
                if answer.done() and not isinstance(answer.exception(), Unavailable):
                    self.world.broken.append(f"a customer was told {answer.exception()!r}")
                self.world.note("order that was tried again")
            await asyncio.sleep(0.3)

    async def run(self) -> None:
        """From the first order to the last judgement."""
        self.start("alpha")
        self.start("beta")
        if not self.plan.canonical and self.world.rng.random() < 0.4:
            self.start("beta-2")
        if not self.plan.canonical:
            faults.plan(self)
            for _ in range(OPERATIONS):
                self.loop.outside(self.world.rng.uniform(1.0, faults.ROUGH_S), self._operate)
        customers = [self.loop.create_task(self._customer(ping)) for ping in self.pings]
        if not self.plan.canonical:
            await asyncio.sleep(faults.ROUGH_S)
        faults.heal(self)
        self.outside.in_call.clear()
        await asyncio.wait(customers, timeout=QUIET_S_MAX)
        patience = self.loop.time() + QUIET_S_MAX
        while (left := unfinished(self)) and self.loop.time() < patience:  # noqa: ASYNC110
            await asyncio.sleep(0.5 if self.plan.canonical else 1.0)
        self.world.broken += [f"never came to rest: {each}" for each in left]
        await self._stop()
        self.world.broken += judge(self)

    async def _stop(self) -> None:
        """The last drain: it must come to an end, and leave nothing in hand."""
        toys = list(self.running.values())
        for name in list(self.running):
            self._steps[name.partition("-")[0]] = self.running[name].process.steps
            self.running[name].process.crash_at = 0
        drains = [toy.process.spawn(toy.drain()) for toy in toys]
        if drains:
            await asyncio.wait(drains, timeout=30.0)
        for toy in toys:
            if not toy.drained:
                self.world.broken.append(f"{toy.process.name} does not drain")
            else:
                self._look_for_leftovers(toy)

    @property
    def steps(self) -> dict[str, int]:
        """How many steps the last process of each service took."""
        return self._steps


@contextmanager
def logging_to(say: Callable[[str], None]) -> Iterator[None]:
    """Send the toolkit's log to the trace, or nowhere."""

    def keep(_: object, method: str, line: structlog.typing.EventDict) -> str:
        say(f"{method}: " + " ".join(f"{key}={value}" for key, value in line.items()))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[keep], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)


def run(plan: Plan) -> Verdict:
    """Run one schedule; the same plan gives the same verdict."""
    schedule = Schedule(plan)
    world = schedule.world
    with virtual(schedule.loop, world.rng), logging_to(world.say):
        schedule.loop.run(schedule.run())
    broken = world.broken + schedule.loop.faults
    return Verdict(plan.seed, broken, dict(world.seen), world.trace, schedule.steps)
