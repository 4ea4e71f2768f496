"""Tasks that must go on: one that ends without being asked to is an error, never a silence.

Before Python 3.13 a cancellation may reach a task that nobody wants to end: what a time-out that
was already over had asked for (gh-117407), or a group whose child had failed (gh-116720). A task
group takes no notice of a child that ends so; the service would be deaf in one ear.
"""

import asyncio
from collections.abc import Awaitable, Callable


class Interrupted(RuntimeError):
    """A task ended that should have gone on; the process ends, and is started anew."""


async def unending(run: Callable[[], Awaitable[None]], over: Callable[[], bool]) -> None:
    """Run something; raises `Interrupted` when it ends although it is not `over` yet."""
    try:
        await run()
    except asyncio.CancelledError:
        if over():
            raise
        raise Interrupted("cancelled, and nobody asked for it") from None
    if not over():
        raise Interrupted("a loop has ended by itself")
