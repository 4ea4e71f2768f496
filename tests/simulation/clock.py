"""An event loop on virtual time, with processes that crash and freeze between any two steps.

One thread, no I/O: when nothing is ready the clock jumps to the next timer. Which of the ready
steps runs next is drawn from the seed, so that one seed is one schedule.
"""

import asyncio
import heapq
import random
import time
import uuid
from asyncio import events
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any
from unittest.mock import patch

STEPS_MAX = 3_000_000
EPOCH_S = 1_790_000_000.0

_process: ContextVar["Process | None"] = ContextVar("process", default=None)


class Process:
    """What dies together: every step of it is run, held back while it is frozen, or never run."""

    def __init__(self, loop: "SimulatedLoop", name: str) -> None:
        self.name, self._loop = name, loop
        self.alive, self.frozen = True, False
        self.steps = 0
        self.crash_at = 0
        self.held: list[asyncio.Handle] = []
        self.on_crash: list[Callable[[], None]] = []
        self.on_thaw: list[Callable[[], None]] = []
        self.context: Context = copy_context()
        self.context.run(_process.set, self)
        loop.processes.append(self)

    @property
    def running(self) -> bool:
        """Whether its steps are run."""
        return self.alive and not self.frozen

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Begin a task of this process."""
        return self._loop.create_task(work, context=self.context.copy())

    def crash(self) -> None:
        """Run no step of it ever again, not even what it would do on its way out."""
        if self.alive:
            self.alive = False
            for then in self.on_crash:
                then()

    def exit(self) -> None:
        """It has ended as it should: nothing of it is left to run."""
        self.alive = False

    def freeze(self) -> None:
        """As SIGSTOP does: time goes on, it does not."""
        self.frozen = True

    def thaw(self) -> None:
        """As SIGCONT does."""
        if self.frozen:
            self.frozen = False
            if self.alive:
                self._loop.resume(self)
            for then in self.on_thaw:
                then()


class SimulatedLoop(asyncio.AbstractEventLoop):
    """Runs one schedule; `shuffled` draws the next step, otherwise the oldest is taken."""

    def __init__(self, rng: random.Random, *, shuffled: bool = True) -> None:
        self._rng, self._shuffled = rng, shuffled
        self._ready: list[asyncio.Handle] = []
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = 0
        self._now = 1_000.0
        self._tasks: list[asyncio.Task[Any]] = []
        self._outside = copy_context()
        self._unwinding = False
        self.processes: list[Process] = []
        self.faults: list[str] = []

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, timer))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing: a cancelled timer is skipped when its time comes."""

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: object = None, context: Context | None = None
    ) -> "asyncio.Task[Any]":
        task = asyncio.Task(coro, loop=self, context=context)
        self._tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.faults.append(f"{context.get('message')}: {type(error).__name__}: {error}")

    # What the simulation asks of it.

    def outside(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> None:
        """Call something that belongs to no process, `delay_s` seconds from now."""
        self.call_later(delay_s, callback, *args, context=self._outside)

    def resume(self, process: Process) -> None:
        """Let a process that was frozen go on with what it missed."""
        self._ready += process.held
        process.held = []

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run until this is done; then let every task end that was left behind."""
        events._set_running_loop(self)
        try:
            main = self.create_task(work, context=self._outside.copy())
            while not main.done():
                self._turn()
            self._unwind()
            return main.result()
        finally:
            events._set_running_loop(None)

    def _turn(self) -> None:
        ready = self._ready
        if not ready:
            self._jump()
        handle = ready.pop(self._rng.randrange(len(ready)) if self._shuffled else 0)
        if handle.cancelled():
            return
        process: Process | None = handle._context.get(_process)  # type: ignore[attr-defined]
        if process is not None and not self._unwinding:
            if process.running:
                process.steps += 1
                if process.steps == process.crash_at:
                    process.crash()
            if not process.running:
                process.held.append(handle)
                return
        handle._run()

    def _jump(self) -> None:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        assert self._timers, "everything waits for something that never comes"
        self._now = max(self._now, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self._now:
            timer = heapq.heappop(self._timers)[2]
            if not timer.cancelled():
                self._ready.append(timer)

    def _unwind(self) -> None:
        """Cancel what is left, the tasks of the dead too, so that nothing outlives its schedule."""
        self._unwinding = True
        for process in self.processes:
            self.resume(process)
        for _ in range(100):
            left = [task for task in self._tasks if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            for _ in range(20 * len(left) + len(self._ready)):
                if self._ready:
                    self._turn()
        assert not left, f"does not end when it is cancelled: {left}"
        for task in self._tasks:
            if not task.cancelled():
                task.exception()  # Seen: whoever cared has heard of it.


@contextmanager
def virtual(loop: SimulatedLoop, rng: random.Random) -> Iterator[None]:
    """Have time, chance and new ids come from the schedule."""
    chance = random.Random(rng.random())
    with (
        patch.object(time, "monotonic", loop.time),
        patch.object(time, "time", lambda: EPOCH_S + loop.time()),
        patch.object(random, "uniform", chance.uniform),
        patch.object(random, "random", chance.random),
        patch.object(uuid, "uuid4", lambda: uuid.UUID(int=chance.getrandbits(128))),
    ):
        yield
