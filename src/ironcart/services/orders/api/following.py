"""Following an order: who waits for its next change, and its events as a stream (SSE)."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager, suppress

from prometheus_client import Gauge

from ironcart.services.orders.api.reads import Reads
from ironcart.services.orders.api.views import as_of, view
from ironcart.services.orders.handlers.table import TERMINAL
from ironcart.services.orders.store import Order
from ironcart.toolkit.envelope import encode_json
from ironcart.toolkit.http import Caller, Scope
from ironcart.toolkit.loop.rounds import Rounds

# Another replica's changes are not heard here: look now and then, for everybody at once.
LOOK_AGAIN_S = 0.5
COMMENT_EVERY_S = 15.0
# How often it is asked whether those who follow may still.
ALLOWED_EVERY_S = 1.0
# Those who follow an order, and those who wait for one with `Prefer: wait`.
FOLLOWERS_MAX = 1_000
# One storefront has at most this part of the places, so that others can follow theirs.
FOLLOWERS_SHARE = 1 / 4

followers = Gauge("ironcart_order_followers", "callers who follow an order or wait for its end")


class Changes:
    """Wakes those who follow an order when it has changed."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._versions: dict[str, tuple[int, str]] = {}
        self._count = 0
        self._of_callers: Counter[str] = Counter()

    @property
    def full(self) -> bool:
        """Whether as many follow as may."""
        return self._count >= FOLLOWERS_MAX

    def full_for(self, caller: Caller) -> bool:
        """Whether there is no place for this caller: operators may take all, others a share."""
        if self.full or caller.scope is Scope.OPERATOR:
            return self.full
        return self._of_callers[caller.id] >= FOLLOWERS_MAX * FOLLOWERS_SHARE

    @property
    def followed(self) -> list[str]:
        """The orders that somebody follows."""
        return list(self._waiting)

    def tell(self, order_ids: Collection[str]) -> None:
        """Wake everybody who follows one of these orders."""
        if self._waiting:
            for order_id in order_ids:
                for event in self._waiting.get(order_id, ()):
                    event.set()

    def compare(self, versions: dict[str, tuple[int, str]]) -> None:
        """Wake those whose order is not what it was when we looked last."""
        changed = [key for key, now in versions.items() if self._versions.get(key) != now]
        self._versions = versions
        self.tell(changed)

    @contextmanager
    def following(self, order_id: str, caller: Caller) -> Iterator[asyncio.Event]:
        """An event that is set at each change of this order; counts as a place of the caller's."""
        event = asyncio.Event()
        self._waiting.setdefault(order_id, set()).add(event)
        self._count += 1
        self._of_callers[caller.id] += 1
        followers.set(self._count)
        try:
            yield event
        finally:
            self._count -= 1
            followers.set(self._count)
            self._of_callers[caller.id] -= 1
            if not self._of_callers[caller.id]:
                del self._of_callers[caller.id]
            self._waiting[order_id].discard(event)
            if not self._waiting[order_id]:
                del self._waiting[order_id]


class Follower:
    """Follows orders to their ends; a loop that sees what other replicas change."""

    def __init__(self, reads: Reads, changes: Changes, draining: asyncio.Event) -> None:
        self._reads, self._changes, self._draining = reads, changes, draining
        self._rounds = Rounds("look at orders that are followed", LOOK_AGAIN_S, self._look)

    async def run(self) -> None:
        """Look at what is followed, until stopped."""
        await self._rounds.run()

    def stop(self) -> None:
        """Look no more, and send everybody who follows on their way."""
        self._rounds.stop()
        self._changes.tell(self._changes.followed)

    async def _look(self) -> bool:
        if followed := self._changes.followed:
            async with self._reads.store() as store:
                self._changes.compare(await store.versions(followed))
        return False

    async def until_terminal(self, order_id: str, wait_s: float, caller: Caller) -> Order | None:
        """The order once it has ended, or as it stands after `wait_s`."""
        with self._changes.following(order_id, caller) as changed, suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while (
                    order := await self._reads.find(order_id)
                ) is not None and order.status not in TERMINAL:
                    if self._draining.is_set():
                        return order
                    await changed.wait()
                    changed.clear()
                return order
        return await self._reads.find(order_id)

    async def events(
        self, order: Order, after_version: int, caller: Caller, allowed: Callable[[], bool]
    ) -> AsyncIterator[bytes]:
        """An order's events after a version, as they are told, until it has ended.

        Also ends soon after whoever follows is not `allowed` to any more.
        """
        base = view(order)
        with self._changes.following(order.order_id, caller) as changed:
            while not self._draining.is_set():
                async with self._reads.store() as store:
                    told = await store.told(order.order_id, after_version)
                    now = await store.find(order.order_id)
                for each in told:
                    shown = as_of(base, each)
                    after_version = each.version
                    yield b"id: %d\nevent: %b\ndata: %b\n\n" % (
                        each.version,
                        each.type.encode(),
                        encode_json(shown),
                    )
                    if shown.status in TERMINAL:
                        return
                if now is None or (now.status in TERMINAL and now.version <= after_version):
                    return
                if not await self._changed(changed, allowed):
                    if not allowed():
                        return
                    yield b": still here\n\n"

    async def _changed(self, changed: asyncio.Event, allowed: Callable[[], bool]) -> bool:
        """Wait for a change; False when it is time for a comment, or to end."""
        for _ in range(round(COMMENT_EVERY_S / ALLOWED_EVERY_S)):
            if await _within(changed, ALLOWED_EVERY_S):
                return allowed()
            if not allowed():
                return False
        return False


async def _within(changed: asyncio.Event, seconds: float) -> bool:
    """Wait for a change; False when there was none."""
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return False
    changed.clear()
    return True
