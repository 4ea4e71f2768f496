"""Undo orders: one that a caller asks for, or all that took too long."""

from collections.abc import Callable

from ironcart.services.orders.handlers.advance import EXPIRED, step
from ironcart.services.orders.handlers.table import TERMINAL, Cancel
from ironcart.services.orders.store import Order, Store
from ironcart.toolkit.database import Database
from ironcart.toolkit.history import Cause, Commit, History
from ironcart.toolkit.http.access import ANONYMOUS, Caller
from ironcart.toolkit.outcomes import Fact
from ironcart.toolkit.telemetry import context

EXPIRE_BATCH_MAX = 500


async def cancel(
    order_id: str,
    *,
    database: Database,
    history: History,
    publish: Callable[[Commit], object],
    cause: Cause,
    reason: str,
    by: Caller,
) -> Order | None:
    """Ask that an order be undone; None when there is none, or none that the caller sees.

    Idempotent. The order that is returned says what came of it: cancelling or cancelled, or, where
    it was too late, confirmed or rejected.
    """
    async with database.transaction() as connection:
        store = Store(connection)
        order = (await store.lock([order_id])).get(order_id)
        if order is None or order.status is None or not by.sees(order.caller):
            return None
        if order.status in TERMINAL:
            return order
        after, fact = step(order, Cancel(None if by is ANONYMOUS else by.id), reason)
        commit: Commit | None = None
        if fact is not None:
            await store.move([after])
            commit = await history.record(connection, [(fact, cause)])
        found = await store.find(order_id)
    if commit is not None:
        publish(commit)
    return found


async def expire(
    after_s: float,
    *,
    database: Database,
    history: History,
    publish: Callable[[Commit], object],
) -> list[str]:
    """Ask that orders be undone which were accepted more than `after_s` ago and are not decided.

    Returns their ids, at most `EXPIRE_BATCH_MAX`. By the database's clock. Replicas may do this at
    once, and a charge under way wins or is sent back, as with any cancellation.
    """
    facts: list[tuple[Fact, Cause]] = []
    moved: list[Order] = []
    commit: Commit | None = None
    async with database.transaction() as connection:
        store = Store(connection)
        for order in await store.late(after_s, EXPIRE_BATCH_MAX):
            after, fact = step(order, Cancel(), EXPIRED)
            if fact is None:
                continue
            trace = context({}, order.trace_id)
            moved.append(after)
            facts.append((fact, Cause(order.trace_id or trace.trace_id, trace)))
        if moved:
            await store.move(moved)
            commit = await history.record(connection, facts)
    if commit is not None:
        publish(commit)
    return [order.order_id for order in moved]
