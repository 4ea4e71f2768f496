"""Two toy services on the real chassis: alpha accepts facts, beta deals with them and answers.

Each Ping says what is to become of it. Whatever takes effect is counted, so that twice shows.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from ironcart.toolkit.broker import Broker
from ironcart.toolkit.collector import Collector
from ironcart.toolkit.database import Connection, Database, Transaction
from ironcart.toolkit.history import Cause, Commit, History, Outbox
from ironcart.toolkit.jobs import Jobs, Settled
from ironcart.toolkit.lifecycle.service import Loop
from ironcart.toolkit.loop import Chassis, Consumer, Message, Subscription
from ironcart.toolkit.loop.releases import Releases
from ironcart.toolkit.outcomes import Done, Fact, Outcome, Park, Retry, Unavailable
from ironcart.toolkit.resilience import Backoff
from ironcart.toolkit.telemetry import TraceContext, Tracing
from ironcart.toolkit.topology import Durable
from simulation.broker import JetStream
from simulation.client import SimulatedClient
from simulation.clock import Process
from simulation.database import Server, SimulatedPool
from simulation.statements import ACCEPT, COUNT
from simulation.world import World

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CAUSE = Cause(TRACE_ID, TraceContext(TRACE_ID, "b7ad6b7169203331"))
SUBJECTS = {"Ping": "pings.said", "Pong": "pongs.said"}
BACKOFF = Backoff(attempts_max=4, first_s=0.2, max_s=2.0)
CALLS_MAX = 3
STEPS_OF_A_JOB = 2
TRACING = Tracing("simulation", {})


class Ping(Struct, frozen=True):
    """What alpha says: `action` is ok, retry, park, bug or job."""

    name: str
    action: str


class Pong(Struct, frozen=True):
    """What beta answers."""

    name: str


def name_of(data: Ping | Pong) -> str:
    """The aggregate that an event is about."""
    return data.name


@dataclass
class Outside:
    """What no crash undoes: what customers were told, and what calls to the outside did."""

    accepted: list[str] = field(default_factory=list)
    calls: Counter[tuple[str, int]] = field(default_factory=Counter)
    retries_left: Counter[str] = field(default_factory=Counter)
    mended: set[str] = field(default_factory=set)
    # What befalls the next process that has made a call and not yet heard of it.
    in_call: list[Callable[[Process], None]] = field(default_factory=list)


class Toy:
    """One process of one of the services."""

    def __init__(
        self, world: World, process: Process, jetstream: JetStream, server: Server
    ) -> None:
        self.world, self.process = world, process
        name = server.name
        self.broker = Broker("nats://simulated", name)
        self.client = SimulatedClient(world, jetstream, process)
        self.broker.client = self.client  # type: ignore[assignment] # it walks like one
        self.database = Database("simulated", name, name)
        self.pool = SimulatedPool(server, process)
        self.database._pool = self.pool  # type: ignore[assignment] # and so does this
        self.history = History(name, SUBJECTS)
        self.outbox = Outbox(self.broker, self.database)
        self.chassis = Chassis(
            name, self.broker, self.database, self.history, self.outbox, TRACING, BACKOFF
        )
        self.work: asyncio.Task[None] | None = None
        self.drained = False
        self.loops: list[asyncio.Task[None]] = []

    def subscribe(self, subscription: Subscription) -> None:
        """Consume, as `toolkit.lifecycle` sets it up."""
        self.consumer = Consumer(self.chassis, subscription)
        self._releases = Releases(self.chassis, [subscription])

    def running(self) -> list[Loop]:
        """What is stopped first when it drains."""
        return [self.consumer, self._releases]

    async def run(self) -> None:
        """Everything that `ironcart run` starts, as far as the toolkit's loops go."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.outbox.run_fast_path())
            group.create_task(self.outbox.run_sweeper())
            self.loops = [group.create_task(each.run()) for each in self.running()]
            await self.beside()

    async def beside(self) -> None:
        """Something more for as long as it runs."""
        await asyncio.Event().wait()

    async def drain(self) -> None:
        """What SIGTERM begins, in the order of `toolkit.lifecycle`."""
        for each in self.running():
            each.stop()
        if self.loops:
            await asyncio.wait(self.loops)
        await self.outbox.flushed()
        assert self.work is not None
        self.work.cancel()
        await asyncio.wait([self.work])
        await self.client.close()
        self.drained = True


class Alpha(Toy):
    """Accepts Pings for good, and hears of Pongs."""

    def __init__(
        self, world: World, process: Process, jetstream: JetStream, server: Server
    ) -> None:
        super().__init__(world, process, jetstream, server)
        self._door: Collector[Ping, None] = Collector(self._accept, batch_max=50, lanes=2)
        durable = Durable("alpha", "PONGS", (SUBJECTS["Pong"],))
        kinds: Mapping[str, type[Struct]] = {SUBJECTS["Pong"]: Pong}
        self.subscribe(Subscription(durable, kinds, name_of, self._hear))

    async def beside(self) -> None:
        await self._door.run()

    async def accept(self, ping: Ping) -> None:
        """Answer a customer: accepted for good when this returns."""
        await self._door.submit(ping)

    async def _accept(self, pings: Sequence[Ping]) -> list[None]:
        commit: Commit | None = None
        async with self.database.transaction() as connection:
            rows = await connection.fetch(ACCEPT, sorted(ping.name for ping in pings))
            new = {row["key"] for row in rows}
            facts = [Fact(ping.name, 1, ping) for ping in pings if ping.name in new]
            commit = await self.history.record(connection, [(fact, CAUSE) for fact in facts])
        if commit is not None:
            self.outbox.hand_over(commit)
        return [None] * len(pings)

    async def _hear(self, messages: Sequence[Message], transaction: Transaction) -> list[Outcome]:
        names = [message.data.name for message in messages]
        await transaction.connection.fetch(COUNT, "heard", names)
        return [Done() for _ in messages]


class Calls:
    """Beta's calls to the outside: two steps each, `job` is its key and the step."""

    def __init__(self, world: World, outside: Outside, process: Process) -> None:
        self._world, self._outside, self._process = world, outside, process

    async def load(
        self, connection: Connection, keys: Sequence[str]
    ) -> Mapping[str, tuple[str, int]]:
        """Read what the calls need: the key says it all."""
        return {key: (key, 1) for key in keys}

    async def call(self, payload: tuple[str, int], attempts: int) -> int:
        """Do something in the world outside, that is harmless to repeat but must be done."""
        weather = self._world.weather
        await asyncio.sleep(self._world.latency_s())
        if self._world.happens(weather.call_fails):
            self._world.note("call that failed")
            raise Unavailable("the outside is down")
        self._outside.calls[payload] += 1
        if self._outside.calls[payload] > 1:
            self._world.note("call that was repeated")
        if self._outside.in_call:
            self._outside.in_call.pop()(self._process)
        await asyncio.sleep(self._world.latency_s())
        if self._world.happens(weather.call_answer_lost):
            self._world.note("call whose answer was lost")
            raise Unavailable("no answer")
        return payload[1]

    async def settle(
        self, connection: Connection, results: Sequence[tuple[tuple[str, int], int]]
    ) -> list[Settled[tuple[str, int]]]:
        """Note how the calls ended."""
        done = [key for (key, _), step in results if step == STEPS_OF_A_JOB]
        rows = await connection.fetch(COUNT, "settled", done)
        version = {row["name"]: row["n"] for row in rows}
        return [
            Settled((Fact(key, version[key], Pong(key)),), CAUSE)
            if step == STEPS_OF_A_JOB
            else Settled(again=(key, step + 1))
            for (key, _), step in results
        ]


class Beta(Toy):
    """Answers Pings, at once or after calls to the outside."""

    def __init__(
        self,
        world: World,
        process: Process,
        jetstream: JetStream,
        server: Server,
        outside: Outside,
    ) -> None:
        super().__init__(world, process, jetstream, server)
        self._outside = outside
        self.jobs: Jobs[tuple[str, int], int] = Jobs(
            Calls(world, outside, process),
            self.database,
            self.history,
            self.outbox,
            calls_max=CALLS_MAX,
        )
        durable = Durable("beta", "PINGS", (SUBJECTS["Ping"],))
        kinds: Mapping[str, type[Struct]] = {SUBJECTS["Ping"]: Ping}
        self.subscribe(Subscription(durable, kinds, name_of, self._handle))

    def running(self) -> list[Loop]:
        return [*super().running(), self.jobs]

    async def _handle(self, messages: Sequence[Message], transaction: Transaction) -> list[Outcome]:
        outcomes: list[Outcome | None] = [self._unwell(message.data) for message in messages]
        well = [m.data for m, no in zip(messages, outcomes, strict=True) if no is None]
        rows = await transaction.connection.fetch(COUNT, "dealt", [ping.name for ping in well])
        version = {row["name"]: row["n"] for row in rows}
        calls = {ping.name: (ping.name, 1) for ping in well if ping.action == "job"}
        if calls:
            await self.jobs.add(transaction, calls)
        return [
            no if no is not None else self._answer(message.data, version[message.data.name])
            for message, no in zip(messages, outcomes, strict=True)
        ]

    def _unwell(self, ping: Ping) -> Outcome | None:
        if ping.action == "bug":
            raise RuntimeError("this handler has a bug")
        if ping.action == "park" and ping.name not in self._outside.mended:
            return Park("cannot be")
        if ping.action == "retry" and self._outside.retries_left[ping.name] > 0:
            self._outside.retries_left[ping.name] -= 1
            return Retry("not yet")
        return None

    def _answer(self, ping: Ping, version: int) -> Done:
        return (
            Done() if ping.action == "job" else Done((Fact(ping.name, version, Pong(ping.name)),))
        )
