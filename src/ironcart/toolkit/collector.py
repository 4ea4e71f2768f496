"""Group commit: what arrives while one batch is being committed makes up the next."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from msgspec import Struct

from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.unending import unending

T = TypeVar("T")
R = TypeVar("R")

WAITING_MAX = 10_000


class Pace:
    """Says how long to wait for company, so that batches grow when there is much to do.

    A batch of one, as in a quiet hour, makes the next wait for nothing. Else the next waits `rests`
    times as long as the last took, up to `wait_s_max`: each batch costs much the same, whatever its
    size, so on a busy machine this is what keeps the cost of a message down.
    """

    def __init__(self, wait_s_max: float, *, rests: float = 1.0) -> None:
        self._wait_s_max, self._rests = wait_s_max, rests
        self.wait_s = 0.0

    def note(self, count: int, took_s: float) -> None:
        """Take in how large the last batch was, and how long it took."""
        self.wait_s = min(self._rests * took_s, self._wait_s_max) if count > 1 else 0.0


class Forecast:
    """Says how long what comes now would wait for its result, from how long recent batches took.

    From when the first of a batch could have begun to when it was through: what else keeps this
    process busy meanwhile counts too.
    """

    def __init__(self) -> None:
        self._batch_s = 0.0
        self._ended = 0.0
        self._running: list[float] = []

    def begin(self, arrived: float) -> float:
        """A batch begins whose first item came at `arrived`; returns what `end` wants."""
        since = max(arrived, self._ended)
        self._running.append(since)
        return since

    def end(self, since: float, now: float) -> None:
        """A batch is through: the last one counts for half, all before it for the other half."""
        self._running.remove(since)
        self._batch_s += (now - since - self._batch_s) / 2
        self._ended = now

    def wait_s(self, batches: int, lanes: int, now: float) -> float:
        """Seconds until the last of `batches` more would be through; 0 while nothing runs."""
        if not self._running:
            return 0.0
        running_s = now - min(self._running)
        # One that takes longer than usual will go on for as long again, as far as we know.
        batch_s = max(self._batch_s, running_s)
        left_s = running_s if running_s > self._batch_s else batch_s - running_s
        return left_s + math.ceil(batches / lanes) * batch_s


class _Entry(Struct, Generic[T, R], eq=False):
    """One item, and who waits for its result."""

    item: T
    future: asyncio.Future[R]
    arrived: float
    hurried: bool
    begun: bool = False


class Collector(Generic[T, R]):
    """Turns concurrent `submit` calls into few calls of `commit`, and waits for nothing.

    `commit` gets up to `batch_max` items in order of arrival and returns one result each; when it
    raises, every caller of that batch gets the exception. `lanes` batches run at once. Beyond
    `waiting_max` items in hand `submit` raises `Unavailable`. What has waited longer than
    `wait_s_max` for its batch to begin is given up in the same way, and is then never committed.
    With a `linger_s_max` a busy one waits a little for company; `rest_s` says for how many seconds
    it rests before each batch, so that others can go first.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        batch_max: int,
        lanes: int = 1,
        waiting_max: int = WAITING_MAX,
        wait_s_max: float | None = None,
        linger_s_max: float = 0.0,
        rest_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._pace, self._forecast = Pace(linger_s_max), Forecast()
        self._wait_s_max = wait_s_max
        self._commit, self._rest_s = commit, rest_s
        self._batch_max, self._lanes, self._waiting_max = batch_max, lanes, waiting_max
        self._waiting: deque[_Entry[T, R]] = deque()
        self._arrived = asyncio.Event()
        self._over = False

    def expected_wait_s(self, ahead: int = 0) -> float:
        """Seconds that what is handed in now would wait for its result, as things go.

        Behind what is in the queue, or behind `ahead` items if that is more.
        """
        batches = max(len(self._waiting), ahead) // self._batch_max + 1
        return self._forecast.wait_s(batches, self._lanes, time.monotonic())

    async def submit(self, item: T, *, hurried: bool = False) -> R:
        """Hand in one item; returns its result once the batch that it was in is through.

        Whoever is cancelled while waiting takes the item back, unless its batch has begun. With
        `hurried` not knowing is an answer too: a batch that has begun and is not through within
        `wait_s_max` goes on, and this raises `TimeoutError`.
        """
        if self._over:
            raise Unavailable("shutting down")
        if len(self._waiting) >= self._waiting_max:
            raise Unavailable("too much work is waiting", retry_after_s=self.expected_wait_s())
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        entry = _Entry(item, future, time.monotonic(), hurried)
        self._waiting.append(entry)
        self._arrived.set()
        if self._wait_s_max is None:
            return await future
        alarm = loop.call_later(self._wait_s_max, self._give_up, entry)
        try:
            return await future
        finally:
            alarm.cancel()

    def _give_up(self, entry: _Entry[T, R]) -> None:
        if entry.future.done():
            return
        if not entry.begun:
            wait_s = self.expected_wait_s()
            entry.future.set_exception(Unavailable("it waited too long", retry_after_s=wait_s))
        elif entry.hurried:
            entry.future.set_exception(TimeoutError())

    async def run(self) -> None:
        """Commit batches until cancelled; what waits then fails with `Unavailable`."""
        try:
            async with asyncio.TaskGroup() as lanes:
                for _ in range(self._lanes):
                    lanes.create_task(unending(self._lane, lambda: self._over))
                try:
                    await asyncio.Event().wait()
                finally:
                    self._over = True
        finally:
            while self._waiting:
                future = self._waiting.popleft().future
                if not future.done():
                    future.set_exception(Unavailable("shutting down"))

    async def _lane(self) -> None:
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            if rest_s := self._rest_s():
                await asyncio.sleep(rest_s)
            elif self._pace.wait_s and len(self._waiting) < self._batch_max:
                await asyncio.sleep(self._pace.wait_s)
            if not (batch := self._take()):
                continue
            started = time.monotonic()
            since = self._forecast.begin(batch[0].arrived)
            try:
                await self._run(batch)
            finally:
                ended = time.monotonic()
                self._forecast.end(since, ended)
            self._pace.note(len(batch), ended - started)

    def _take(self) -> list[_Entry[T, R]]:
        """The next batch, without those who wait no longer."""
        batch: list[_Entry[T, R]] = []
        while self._waiting and len(batch) < self._batch_max:
            entry = self._waiting.popleft()
            if not entry.future.done():
                entry.begun = True
                batch.append(entry)
        return batch

    async def _run(self, batch: list[_Entry[T, R]]) -> None:
        try:
            results = await self._commit([entry.item for entry in batch])
            assert len(results) == len(batch), "one result for each item"
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            verdict = Unavailable("shutting down") if cancelled else error
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(verdict)
            if not isinstance(error, Exception):
                raise
        else:
            for entry, result in zip(batch, results, strict=True):
                if not entry.future.done():
                    entry.future.set_result(result)
