"""Defences taken away one at a time: the simulation must notice each of them."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest.mock import patch

from ironcart.toolkit import history, jobs, leases
from ironcart.toolkit.broker import Outgoing, publisher
from ironcart.toolkit.broker.puller import Puller
from ironcart.toolkit.history.events import History
from ironcart.toolkit.history.outbox import Outbox
from ironcart.toolkit.loop import attempt, consumer, parking
from ironcart.toolkit.outcomes import Poison, Unavailable

Defect = Callable[[], AbstractContextManager[Any]]


def no_inbox() -> AbstractContextManager[Any]:
    """Every message counts as new."""

    async def admit(_: Any, __: str, arrivals: Sequence[Any]) -> set[Any]:
        return {key for key, *_ in arrivals}

    return patch.object(history, "admit", admit)


def ack_before_commit() -> AbstractContextManager[Any]:
    """The broker is told first."""
    real = consumer.Consumer._until_dealt_with

    async def acked_first(self: Any, batch: Any) -> Any:
        for delivery in batch:
            await self.puller.send(delivery, b"+ACK")
        return await real(self, batch)

    return patch.object(consumer.Consumer, "_until_dealt_with", acked_first)


def no_sweeper() -> AbstractContextManager[Any]:
    """Nobody publishes what the fast path left behind."""

    async def sweep(_: Outbox) -> bool:
        return False

    return patch.object(Outbox, "sweep", sweep)


class _Anything:
    def __eq__(self, _: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def settle_without_lease() -> AbstractContextManager[Any]:
    """Whoever has made a call writes down how it ended."""

    async def lock(_: Any, keys: Sequence[str]) -> dict[str, Any]:
        return dict.fromkeys(keys, _Anything())

    return patch.object(leases, "lock", lock)


def mark_before_publish() -> AbstractContextManager[Any]:
    """What is about to be published counts as published."""
    real = Outbox._publish

    async def marked_first(self: Any, commits: Any) -> None:
        await self._mark([(commit.batch_no, 1) for commit in commits], [])
        await real(self, commits)

    return patch.object(Outbox, "_publish", marked_first)


def drop_on_nak() -> AbstractContextManager[Any]:
    """What should come again later is told to be done."""

    async def nak(self: Any, delivery: Any, _: float) -> None:
        await self.send(delivery, b"+ACK")

    return patch.object(Puller, "nak", nak)


def no_dead_letter() -> AbstractContextManager[Any]:
    """What is set aside is thrown away."""

    async def set_aside(_: Any, __: Any) -> None:
        """Keep nothing."""

    async def park(_: Any, __: Any) -> int:
        return 1

    stack = ExitStack()
    stack.enter_context(patch.object(parking, "set_aside", set_aside))
    stack.enter_context(patch.object(consumer, "park", park))
    return stack


def outage_is_poison() -> AbstractContextManager[Any]:
    """The database's absence counts against the message that met it."""
    real = attempt.Attempt._run

    async def run(self: Any, messages: Any) -> Any:
        try:
            return await real(self, messages)
        except Unavailable as error:
            raise Poison("it met an outage") from error

    return patch.object(attempt.Attempt, "_run", run)


def no_message_id() -> AbstractContextManager[Any]:
    """The stream cannot know a repeat."""

    async def publish(broker: Any, messages: Sequence[Any]) -> list[int]:
        return await genuine(
            broker, [Outgoing("", each.subject, each.body, each.headers) for each in messages]
        )

    genuine = publisher.publish
    return patch.object(history.outbox, "publish", publish)


def facts_outside_the_transaction() -> AbstractContextManager[Any]:
    """State and facts are committed apart: a crash in between loses the facts."""
    real = History.record

    async def record(self: Any, connection: Any, facts: Any) -> Any:
        connection._server.release(connection, keep=True)
        await asyncio.sleep(0)
        return await real(self, connection, facts)

    return patch.object(History, "record", record)


def lease_for_ever() -> AbstractContextManager[Any]:
    """Nobody takes over from the dead."""
    return patch.object(jobs, "LEASE_S", 10.0**9)


def drain_in_a_hurry() -> AbstractContextManager[Any]:
    """A drain does not wait for what was asked for."""
    real = Puller.stop

    def stop(self: Any) -> None:
        real(self)
        for line in self._lines:
            line.asked = 0

    return patch.object(Puller, "stop", stop)


DEFECTS: tuple[Defect, ...] = (
    no_inbox,
    ack_before_commit,
    no_sweeper,
    settle_without_lease,
    mark_before_publish,
    drop_on_nak,
    no_dead_letter,
    outage_is_poison,
    no_message_id,
    facts_outside_the_transaction,
    lease_for_ever,
    drain_in_a_hurry,
)
