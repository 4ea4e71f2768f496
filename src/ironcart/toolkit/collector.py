"""Group commit: what arrives while one batch is being committed makes up the next."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from ironcart.toolkit.outcomes import Unavailable

T = TypeVar("T")
R = TypeVar("R")

WAITING_MAX = 10_000


class Pace:
    """Says how long to wait for company, so that batches grow when there is much to do.

    A batch of one, as in a quiet hour, makes the next wait for nothing. Else the next waits as
    long as the last took, up to `wait_s_max`: each batch costs much the same, whatever its size, so
    on a busy machine this is what keeps the cost of a message down.
    """

    def __init__(self, wait_s_max: float) -> None:
        self._wait_s_max = wait_s_max
        self.wait_s = 0.0

    def note(self, count: int, took_s: float) -> None:
        """Take in how large the last batch was, and how long it took."""
        self.wait_s = min(took_s, self._wait_s_max) if count > 1 else 0.0


class Collector(Generic[T, R]):
    """Turns concurrent `submit` calls into few calls of `commit`, and waits for nothing.

    `commit` gets up to `batch_max` items in order of arrival and returns one result each; when it
    raises, every caller of that batch gets the exception. `lanes` batches run at once. Beyond
    `waiting_max` items in hand `submit` raises `Unavailable`. With a `linger_s_max` a busy one
    waits a little for company.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        batch_max: int,
        lanes: int = 1,
        waiting_max: int = WAITING_MAX,
        linger_s_max: float = 0.0,
    ) -> None:
        self._pace = Pace(linger_s_max)
        self._commit = commit
        self._batch_max, self._lanes, self._waiting_max = batch_max, lanes, waiting_max
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._arrived = asyncio.Event()
        self._over = False

    async def submit(self, item: T) -> R:
        """Hand in one item; returns its result once the batch that it was in is through."""
        if self._over:
            raise Unavailable("shutting down")
        if len(self._waiting) >= self._waiting_max:
            raise Unavailable("too much work is waiting", retry_after_s=1.0)
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Commit batches until cancelled; what waits then fails with `Unavailable`."""
        try:
            async with asyncio.TaskGroup() as lanes:
                for _ in range(self._lanes):
                    lanes.create_task(self._lane())
        finally:
            self._over = True
            while self._waiting:
                _, future = self._waiting.popleft()
                if not future.done():
                    future.set_exception(Unavailable("shutting down"))

    async def _lane(self) -> None:
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            if self._pace.wait_s and len(self._waiting) < self._batch_max:
                await asyncio.sleep(self._pace.wait_s)
            count = min(len(self._waiting), self._batch_max)
            batch = [self._waiting.popleft() for _ in range(count)]
            started = time.monotonic()
            await self._run(batch)
            self._pace.note(len(batch), time.monotonic() - started)

    async def _run(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._commit([item for item, _ in batch])
            assert len(results) == len(batch), "one result for each item"
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            verdict = Unavailable("shutting down") if cancelled else error
            for _, future in batch:
                if not future.done():
                    future.set_exception(verdict)
            if not isinstance(error, Exception):
                raise
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
