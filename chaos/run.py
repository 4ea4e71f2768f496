"""One run: load, faults one after the other, heal, drain, verify."""

import asyncio
import contextlib
import json
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from chaos import disks
from chaos.follow import LoadLog, Meters
from chaos.judge import Ended, Injection
from chaos.outside import AWAY, Outside
from chaos.plan import Options, Turn, turns
from chaos.row import Arena, Felt, Row
from chaos.system import CLI, SERVICES, System

WARM_UP_ORDERS = 20
WARM_UP_TIMEOUT_S = 60.0
SAMPLE_EVERY_S = 1.0
CANCEL_EVERY_S = 3.0
OLD_S = 3.0
# A backlog that is still there after so long is left to the next row, and seen in the report.
CALM_WITHIN_S = 3.0
CALM_LONG_WITHIN_S = 60.0
LAG_SECONDS_MAX = 8.0
# A fault aims at a moment, and may miss it: then it has another turn when all have had theirs.
TRIES_MAX = 3
VERIFY_TIMEOUT_S = 900.0
ENDS = ("confirmed", "rejected", "cancelled")
LOAD_STOPS_WITHIN_S = 120.0
READ_TIMEOUT_S = 120.0
ENDED = (
    "SELECT order_id, status, created_at, updated_at FROM orders.orders WHERE status IS NOT NULL"
)

Tell = Callable[[str], None]


@dataclass(slots=True)
class Sample:
    """One look in the middle of a run."""

    at: float
    lag: int | None


@dataclass(slots=True)
class Result:
    """Everything a run came to, before it is judged."""

    started_at: float
    injections: list[Injection] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    ended: dict[str, Ended] = field(default_factory=dict)
    load: LoadLog = field(default_factory=lambda: LoadLog(Path()))
    meters: Meters = field(default_factory=Meters)
    verify_code: int = -1
    verify: dict[str, Any] = field(default_factory=dict)
    verify_text: str = ""
    load_code: int = 0
    up_code: int = 0
    faults_until: float = 0.0
    drained_s: float = 0.0
    redelivered: int = 0


class Run:
    """One system from its start to its judgement."""

    def __init__(
        self,
        data: Path,
        options: Options,
        rows: Sequence[Row],
        *,
        environ: Mapping[str, str],
        tell: Tell,
        nodes: int = 1,
        prepare: str = "",
    ) -> None:
        self._prepare = prepare
        self._options, self._rows, self._tell = options, rows, tell
        self._environ = environ
        self._own_disks = any(row.lacks is disks.lacking for row in rows)
        self._system = System(data, options.seed, environ=environ, nodes=nodes)
        self.result = Result(time.time(), load=LoadLog(data / "load"))

    async def run(self) -> Result:
        """Run it; raises `CannotStart` when the system does not come up."""
        result, system = self.result, self._system
        if self._own_disks:
            disks.attach(system.data)
        try:
            await system.start()
            self._tell(f"the system is up after {time.time() - result.started_at:.0f} s")
            try:
                async with aiohttp.ClientSession() as session:
                    await self._attack(Outside(system, session))
            finally:
                result.up_code = await system.stop()
        finally:
            if self._own_disks:
                disks.detach(system.data)
        return result

    async def _attack(self, outside: Outside) -> None:
        result = self.result
        if self._prepare:
            async with outside.database() as connection:
                await connection.execute(self._prepare)
        load = await self._start_load()
        try:
            async with asyncio.TaskGroup() as group:
                beside = [
                    group.create_task(self._sample(outside)),
                    group.create_task(self._cancel_some(outside)),
                ]
                await self._inject_all(outside, load)
                result.faults_until = time.time()
                beside[1].cancel()
                await self._end_load(load)
                self._tell("draining")
                await self._drain(outside)
                beside[0].cancel()
        finally:
            if load.returncode is None:
                load.kill()
                await load.wait()
        with contextlib.suppress(*AWAY):
            result.redelivered = await outside.redelivered()
        await self._verify()
        with contextlib.suppress(*AWAY):
            async with outside.database(READ_TIMEOUT_S) as connection:
                for row in await connection.fetch(ENDED):
                    ended = row["updated_at"].timestamp() if row["status"] in ENDS else None
                    result.ended[row["order_id"]] = Ended(row["created_at"].timestamp(), ended)
        result.load.read()

    async def _start_load(self) -> asyncio.subprocess.Process:
        options = self._options
        duration_s = options.duration_s or 86_400
        argv = [*CLI, "load", "--data", str(self._system.data), "--rate", f"{options.rate:g}"]
        argv += ["--duration", f"{duration_s:g}", "--seed", str(options.seed)]
        argv += ["--settle", "0", "--quiet", "--json"]
        with (self._system.data / "load.out").open("ab") as out:
            return await asyncio.create_subprocess_exec(
                *argv, stdout=out, stderr=out, env=dict(self._environ), start_new_session=True
            )

    async def _inject_all(self, outside: Outside, load: asyncio.subprocess.Process) -> None:
        options = self._options

        async def warm() -> bool:
            return self.result.load.count("202") >= WARM_UP_ORDERS

        if not await outside.until(warm, WARM_UP_TIMEOUT_S):
            self._tell("there is hardly any load")
        missed: list[Turn] = []
        for turn in turns(self._rows, options):
            if load.returncode is not None or self._out_of_time():
                break
            if not await self._bites(turn, outside):
                missed.append(turn)
        for _ in range(0 if options.long else TRIES_MAX - 1):
            missed = [turn for turn in missed if not await self._bites(turn, outside)]

    async def _bites(self, turn: Turn, outside: Outside) -> bool:
        """Inject a fault and tell how it went; whether it bit."""
        injection = await self._inject(turn, outside)
        felt = injection.felt
        mark = "bit" if felt.bit else "DID NOT BITE"
        if not injection.calm:
            mark += ", backlog left"
        told = "; ".join(felt.seen + [f"NOT {what}" for what in felt.missed])
        self._tell(f"{len(self.result.injections):>3} {turn.row.name}: {mark}: {told}")
        return felt.bit

    def _out_of_time(self) -> bool:
        """Whether a run that has a budget for its faults has used it up."""
        budget_s = self._options.budget_s
        return 0 < budget_s < time.time() - self.result.started_at

    async def _inject(self, turn: Turn, outside: Outside) -> Injection:
        result, felt = self.result, Felt()
        arena = Arena(
            self._system, outside, result.load, result.meters, turn.draw, self._options.long
        )
        injection = Injection(turn.row.name, felt)
        before = result.meters.totals["duplicates"]
        felt.inject()  # Said again by the row, when it is true.
        try:
            await turn.row.act(arena, felt)
        except Exception as error:  # noqa: BLE001 - a row that fails is a finding of its own
            felt.saw(f"the row itself failed: {type(error).__name__}: {error}", proof=False)
        if felt.healed_at < felt.injected_at:
            felt.heal()
        for link in self._system.links.values():
            link.heal()
        result.injections.append(injection)
        await asyncio.sleep(self._options.every_s)
        injection.calm = await self._calm(outside)
        injection.duplicates = round(result.meters.totals["duplicates"] - before)
        return injection

    async def _calm(self, outside: Outside) -> bool:
        """Wait until no order and no call is old, and lag is about as little as load brings."""

        async def calm() -> bool:
            lag = await outside.lag()
            work = await outside.open_work(OLD_S)
            return work == 0 and lag is not None and lag < LAG_SECONDS_MAX * self._options.rate

        within_s = CALM_LONG_WITHIN_S if self._options.long else CALM_WITHIN_S
        return await outside.until(calm, within_s, every_s=0.5)

    async def _end_load(self, load: asyncio.subprocess.Process) -> None:
        if self._options.long:
            self._tell("waiting for the last orders")
        elif load.returncode is None:
            load.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(LOAD_STOPS_WITHIN_S):
                self.result.load_code = await load.wait()
        except TimeoutError:
            self.result.load_code = -1

    async def _drain(self, outside: Outside) -> None:
        began = time.monotonic()

        async def drained() -> bool:
            return await outside.open_work(0) == 0 and await outside.lag() == 0

        done = await outside.until(drained, self._options.drain_s, every_s=0.5)
        self.result.drained_s = time.monotonic() - began
        self._tell(f"{'drained' if done else 'NOT drained'} after {self.result.drained_s:.1f} s")

    async def _verify(self) -> None:
        result = self.result
        poison = sum(injection.felt.dead_letters for injection in result.injections)
        said = await self._system.ironcart(
            *("verify", "--json", "--settle", f"{self._options.settle_s:g}"),
            *("--expect-dead-letters", str(poison)),
            timeout_s=VERIFY_TIMEOUT_S,
        )
        result.verify_code = said.code
        result.verify_text = said.err.strip()
        with contextlib.suppress(ValueError, IndexError):
            result.verify = json.loads(said.out.strip().splitlines()[-1])

    async def _sample(self, outside: Outside) -> None:
        while True:
            due = time.monotonic() + SAMPLE_EVERY_S
            lag = await outside.lag()
            metrics = await asyncio.gather(*(outside.metrics(service) for service in SERVICES))
            for service, found in zip(SERVICES, metrics, strict=True):
                self.result.meters.take(service, found)
            self.result.samples.append(Sample(time.time(), lag))
            self.result.load.read()
            await asyncio.sleep(max(0.1, due - time.monotonic()))

    async def _cancel_some(self, outside: Outside) -> None:
        """Cancel an order now and then, as customers do, some of them in the middle of a charge."""
        draw = random.Random(f"{self._options.seed}/cancel")  # noqa: S311 - repeatable
        while True:
            await asyncio.sleep(CANCEL_EVERY_S * draw.uniform(0.5, 1.5))
            recent = [each.order_id for each in list(self.result.load.by_key.values())[-20:]]
            if known := [order_id for order_id in recent if order_id]:
                with contextlib.suppress(*AWAY, FileNotFoundError, ValueError):
                    await outside.post("orders", f"/orders/{known[-1]}/cancel")
