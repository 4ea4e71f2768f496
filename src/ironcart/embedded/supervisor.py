"""Keeps children running: starts them, starts them again when they end, stops them in order."""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from ironcart.embedded.process import CannotStart, Child, launch_argv, launch_options

READY_POLL_S = 0.1
# A child that ran this long starts again at once; one that keeps ending waits longer each time.
STEADY_S = 10.0
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 5.0
INSIST_TIMEOUT_S = 2.0
# Together longer than a pause that a part recovers from by itself.
ALIVE_POLL_S = 2.0
NOT_ALIVE_MAX = 5


class State(StrEnum):
    """What a part is doing, as its supervisor sees it."""

    STARTING = "starting"
    UP = "up"
    RESTARTING = "restarting"
    STOPPED = "stopped"


@dataclass
class Part:
    """A child and what became of it: `pid` is its newest process, which may have ended."""

    child: Child
    state: State = State.STARTING
    pid: int | None = None
    running: bool = False
    restarts: int = 0
    up: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)


def backoff_s(quick_ends: int) -> float:
    """Return the pause before the next start, after so many quick ends in a row."""
    if quick_ends <= 1:
        return 0.0
    return float(min(BACKOFF_FIRST_S * 2 ** min(quick_ends - 2, 16), BACKOFF_MAX_S))


class Supervisor:
    """Runs its children in `group`; `tell` gets a line for a person, `changed` any new pid.

    Use it on the main thread: the children's lives are tied to it.
    """

    def __init__(
        self,
        group: asyncio.TaskGroup,
        *,
        tell: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self._group = group
        self._tell = tell
        self._changed = changed
        self.parts: dict[str, Part] = {}

    def start(self, *children: Child) -> None:
        """Start these children and keep them running from now on."""
        for child in children:
            part = self.parts[child.name] = Part(child)
            self._group.create_task(self._keep(part))

    async def ready(self, names: Iterable[str], timeout_s: float) -> None:
        """Return when all of `names` are up; `CannotStart` names one that is not in time."""
        waiting = list(names)
        try:
            async with asyncio.timeout(timeout_s):
                for name in waiting:
                    await self.parts[name].up.wait()
        except TimeoutError:
            late = next(name for name in waiting if not self.parts[name].up.is_set())
            log = self.parts[late].child.log
            raise CannotStart(f"{late} is not ready after {timeout_s:g} s: see {log}") from None

    async def stop(self, names: Iterable[str], timeout_s: float) -> None:
        """Ask all of `names` to finish at once, insisting when `timeout_s` have passed."""
        parts = [self.parts[name] for name in names if name in self.parts]
        for part in parts:
            part.stopping.set()
            _send(part, part.child.stop_signal)
        if await _all_stopped(parts, timeout_s):
            return
        for attempt in (1, 2):
            for part in (part for part in parts if not part.stopped.is_set()):
                self._tell(f"{part.child.name} has not stopped in time: insisting")
                _send(part, part.child.last_signal if attempt == 1 else signal.SIGKILL)
            if await _all_stopped(parts, INSIST_TIMEOUT_S):
                return

    async def _keep(self, part: Part) -> None:
        loop = asyncio.get_running_loop()
        quick_ends = 0
        while not part.stopping.is_set():
            began = loop.time()
            ending = await self._run(part)
            if part.stopping.is_set():
                break
            quick_ends = quick_ends + 1 if loop.time() - began < STEADY_S else 1
            pause_s = backoff_s(quick_ends)
            part.restarts += 1
            part.state = State.RESTARTING
            again = f"in {pause_s:g} s" if pause_s else "now"
            self._tell(f"{part.child.name} {ending}: starting it again {again}")
            await _pause(part.stopping, pause_s)
        part.state = State.STOPPED
        part.stopped.set()

    async def _run(self, part: Part) -> str:
        """Run the child once, to its end; says how it ended."""
        try:
            with launch_options(part.child) as options:
                process = await asyncio.create_subprocess_exec(*launch_argv(part.child), **options)
        except OSError as error:
            return f"cannot be started ({error.strerror})"
        part.pid, part.running, part.state = process.pid, True, State.STARTING
        if part.stopping.is_set():
            _send(part, part.child.stop_signal)
        self._changed()
        watch = self._group.create_task(self._watch(part, process))
        status = await process.wait()
        watch.cancel()
        part.up.clear()
        part.running = False
        return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended ({status})"

    async def _watch(self, part: Part, process: Process) -> None:
        while process.returncode is None:
            if await asyncio.to_thread(part.child.ready) and process.returncode is None:
                part.state = State.UP
                part.up.set()
                break
            await asyncio.sleep(READY_POLL_S)
        if part.child.alive is not None:
            await self._watch_alive(part, process, part.child.alive)

    async def _watch_alive(self, part: Part, process: Process, alive: Callable[[], bool]) -> None:
        """End a child that says, again and again, that it cannot work: it is started anew."""
        failures = 0
        while process.returncode is None and failures < NOT_ALIVE_MAX:
            await asyncio.sleep(ALIVE_POLL_S)
            failures = 0 if await asyncio.to_thread(alive) else failures + 1
        if process.returncode is None and not part.stopping.is_set():
            self._tell(f"{part.child.name} is up but says that it cannot work: ending it")
            _send(part, signal.SIGKILL)


def _send(part: Part, order: signal.Signals) -> None:
    # Not through asyncio's process: that one may reap the child under its own watcher.
    if part.running and part.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(part.pid, order)


async def _all_stopped(parts: list[Part], timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            for part in parts:
                await part.stopped.wait()
    except TimeoutError:
        return False
    return True


async def _pause(stopping: asyncio.Event, pause_s: float) -> None:
    try:
        async with asyncio.timeout(pause_s):
            await stopping.wait()
    except TimeoutError:
        return
