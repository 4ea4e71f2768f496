"""Group commit: what waits while a batch is being committed makes up the next."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from ironcart.toolkit.collector import Collector
from ironcart.toolkit.outcomes import Unavailable


class Commits:
    """Commits batches, each only when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.error: BaseException | None = None
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.begun = asyncio.Event()
        self.running, self.running_max = 0, 0

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.begun.set()
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        await self.may_go_on.wait()
        self.running -= 1
        if self.error is not None:
            raise self.error
        return [item * 10 for item in items]


@asynccontextmanager
async def running(collector: Collector[int, int]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(collector.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def submit(collector: Collector[int, int], *items: int) -> list[asyncio.Task[int]]:
    """Submit concurrently; returns when all of them wait."""
    tasks = [asyncio.create_task(collector.submit(item)) for item in items]
    await asyncio.sleep(0)
    return tasks


async def test_a_single_item_waits_for_nobody() -> None:
    commits = Commits()
    collector = Collector(commits, batch_max=100)
    async with running(collector):
        assert await collector.submit(7) == 70
    assert commits.batches == [[7]]


async def test_what_arrives_during_a_commit_makes_up_the_next_batch_in_order() -> None:
    commits = Commits()
    commits.may_go_on.clear()
    collector = Collector(commits, batch_max=100)
    async with running(collector):
        first = await submit(collector, 1)
        await commits.begun.wait()
        rest = await submit(collector, 2, 3, 4)
        commits.may_go_on.set()
        assert await asyncio.gather(*first, *rest) == [10, 20, 30, 40]
    assert commits.batches == [[1], [2, 3, 4]]


async def test_no_batch_is_larger_than_it_may_be() -> None:
    commits = Commits()
    collector = Collector(commits, batch_max=4)
    waiting = await submit(collector, *range(10))
    async with running(collector):
        assert await asyncio.gather(*waiting) == [n * 10 for n in range(10)]
    assert commits.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_lanes_commit_side_by_side() -> None:
    commits = Commits()
    commits.may_go_on.clear()
    collector = Collector(commits, batch_max=1, lanes=2)
    waiting = await submit(collector, 1, 2, 3)
    async with running(collector):
        await commits.begun.wait()
        await asyncio.sleep(0)
        commits.may_go_on.set()
        await asyncio.gather(*waiting)
    assert commits.running_max == 2


async def test_an_error_reaches_every_caller_of_its_batch_and_no_other() -> None:
    commits = Commits()
    commits.error = Unavailable("the database is away")
    collector = Collector(commits, batch_max=100)
    waiting = await submit(collector, 1, 2)
    async with running(collector):
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        commits.error = None
        assert await collector.submit(3) == 30
    assert [type(answer) for answer in answers] == [Unavailable, Unavailable]


async def test_too_few_results_are_an_error_for_every_caller() -> None:
    async def forgetful(items: Sequence[int]) -> list[int]:
        return list(items)[1:]

    collector = Collector(forgetful, batch_max=100)
    waiting = await submit(collector, 1, 2)
    async with running(collector):
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [AssertionError, AssertionError]


async def test_a_caller_that_goes_away_leaves_the_others_their_answers() -> None:
    commits = Commits()
    commits.may_go_on.clear()
    collector = Collector(commits, batch_max=100)
    async with running(collector):
        first, second = await submit(collector, 1, 2)
        await commits.begun.wait()
        first.cancel()
        await asyncio.sleep(0)
        commits.may_go_on.set()
        assert await second == 20
        assert await collector.submit(3) == 30
    assert first.cancelled()


async def test_cancelling_the_collector_tells_those_in_the_batch_and_those_that_wait() -> None:
    commits = Commits()
    commits.may_go_on.clear()
    collector = Collector(commits, batch_max=1)
    async with running(collector) as task:
        waiting = await submit(collector, 1, 2)
        await commits.begun.wait()
        task.cancel()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable, Unavailable]


async def test_nobody_waits_for_a_collector_that_has_ended() -> None:
    collector = Collector(Commits(), batch_max=1)
    async with running(collector):
        await collector.submit(1)

    with pytest.raises(Unavailable, match="shutting down"):
        await collector.submit(2)


async def test_more_than_may_wait_is_refused_at_once_with_a_time_to_come_back() -> None:
    collector = Collector(Commits(), batch_max=1, waiting_max=2)
    waiting = await submit(collector, 1, 2)

    with pytest.raises(Unavailable, match="too much work") as refused:
        await collector.submit(3)
    assert refused.value.retry_after_s == 0.0, "nothing runs yet, so nothing is known"
    async with running(collector):
        assert await asyncio.gather(*waiting) == [10, 20]
