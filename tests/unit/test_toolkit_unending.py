"""Loops that must go on: ending by themselves is an error, being asked to end is none."""

import asyncio

import pytest

from ironcart.toolkit.unending import Interrupted, unending


async def test_a_cancellation_that_nobody_asked_for_is_an_error() -> None:
    async def struck() -> None:
        raise asyncio.CancelledError

    with pytest.raises(Interrupted, match="nobody asked"):
        await unending(struck, lambda: False)


async def test_a_loop_that_ends_by_itself_is_an_error_until_it_is_over() -> None:
    async def ends() -> None:
        await asyncio.sleep(0)

    with pytest.raises(Interrupted, match="by itself"):
        await unending(ends, lambda: False)
    await unending(ends, lambda: True)


async def test_one_that_is_to_end_ends_as_ever() -> None:
    over = asyncio.Event()
    task = asyncio.create_task(unending(asyncio.Event().wait, over.is_set))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    over.set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
