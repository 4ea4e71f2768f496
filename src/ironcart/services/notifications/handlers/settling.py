"""Settling: what came of a notice is written down and told, in one version of its order's history
here, whichever channel it went by."""

from collections.abc import Sequence
from typing import Any

from ironcart.events import NotificationFailed, NotificationSent
from ironcart.services.notifications.store import Notice, Store, Told
from ironcart.toolkit.database import Connection
from ironcart.toolkit.jobs import Settled
from ironcart.toolkit.outcomes import Fact


def fact_of(notice: Notice, told: Told, version: int) -> Fact:
    """What is to be said of a notification that has ended."""
    subject = (notice.order_id, notice.channel, notice.template, told.recipient_hash)
    if told.reason is None:
        return Fact(notice.order_id, version, NotificationSent(*subject))
    return Fact(notice.order_id, version, NotificationFailed(*subject, told.reason))


async def settle(
    connection: Connection, results: Sequence[tuple[Notice, Told]]
) -> list[Settled[Any]]:
    """Write down what came of it, and say so; what has ended before is left as it is."""
    if not results:
        return []
    store = Store(connection)
    order_ids = {notice.order_id for notice, _ in results}
    due = await store.lock_orders(order_ids)
    versions = await store.versions(order_ids)
    settled: list[Settled[Any]] = []
    for notice, told in results:
        if notice.key in due:
            version = versions[notice.order_id] = versions.get(notice.order_id, 0) + 1
            settled.append(Settled((fact_of(notice, told, version),), notice.cause))
        else:
            settled.append(Settled())
    if ended := [(notice.key, told) for notice, told in results if notice.key in due]:
        await store.settle(ended)
    return settled
