"""Orders, put together."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated

import structlog
from msgspec import Meta, Struct
from prometheus_client import Counter, Histogram

from ironcart.events import (
    CURRENCIES,
    CURRENCY_DEFAULT,
    OrderCreated,
    PaymentFailed,
    PaymentRefunded,
    PaymentSucceeded,
    PaymentVoided,
    RefundIssued,
    StockRejected,
    StockReserved,
    aggregate_of,
    durable,
    kinds_of,
    subjects_of,
)
from ironcart.services.orders.api import (
    Api,
    Changes,
    Door,
    Doorstep,
    Follower,
    GiveWay,
    Reads,
    endpoints,
    looking,
)
from ironcart.services.orders.fold import MEMORY
from ironcart.services.orders.handlers.accept import Answer, Request, Verdict, accept
from ironcart.services.orders.handlers.admit import COMMIT_WAIT_S_MAX, IN_HAND_MAX, OPEN_MAX, Limits
from ironcart.services.orders.handlers.advance import Told, adopt, advance
from ironcart.services.orders.handlers.undo import expire
from ironcart.toolkit.collector import Collector
from ironcart.toolkit.database import Database
from ironcart.toolkit.lifecycle import Service, Wiring
from ironcart.toolkit.lifecycle.service import Loop
from ironcart.toolkit.loop import Chassis, Subscription
from ironcart.toolkit.loop.rounds import Rounds
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.vault import Vault, key_ring

NAME = "orders"
ORDERS = durable(NAME, "ORDERS", (OrderCreated,))
INVENTORY = durable(NAME, "INVENTORY", (StockReserved, StockRejected))
PAYMENTS = durable(
    NAME,
    "PAYMENTS",
    (PaymentSucceeded, PaymentFailed, PaymentVoided, PaymentRefunded, RefundIssued),
)
ACCEPT_BATCH_MAX = 200
EXPIRE_EVERY_S = 1.0
_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ID_CHARACTERS = 26

accepted = Counter("ironcart_orders_accepted_total", "orders answered with 202")
expired = Counter("ironcart_orders_expired_total", "orders that took too long and are undone")
conflicts = Counter("ironcart_order_conflicts_total", "events that tell another order under an id")
finished = Counter("ironcart_orders_finished_total", "orders that have ended", ["status"])
seconds = Histogram(
    "ironcart_order_seconds",
    "accepted to ended",
    ["status"],
    buckets=(0.05, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2, 5, 10, 30, 60, 300),
)


class Settings(Struct, frozen=True, kw_only=True):
    """What only orders is told."""

    vault_database_url: str
    master_key: str
    master_keys_old: str = ""
    currency: Annotated[str, Meta(pattern=f"^({'|'.join(CURRENCIES)})$")] = CURRENCY_DEFAULT
    orders_expire_after_s: Annotated[float, Meta(ge=0, le=365 * 86_400)] = 0.0
    orders_in_hand_max: Annotated[int, Meta(ge=1, le=100_000)] = IN_HAND_MAX
    orders_commit_wait_s_max: Annotated[float, Meta(gt=0, le=60)] = COMMIT_WAIT_S_MAX
    orders_open_max: Annotated[int, Meta(ge=1)] = OPEN_MAX

    @property
    def limits(self) -> Limits:
        """Past what an order is refused at the door."""
        return Limits(self.orders_in_hand_max, self.orders_commit_wait_s_max, self.orders_open_max)


def new_order_id() -> str:
    """Draw an id that sorts by time: 48 bits of milliseconds, 80 bits nobody can guess."""
    number = (int(time.time() * 1000) << 80) | secrets.randbits(80)
    digits = []
    for _ in range(_ID_CHARACTERS):
        number, digit = divmod(number, 32)
        digits.append(_BASE32[digit])
    return "ORD-" + "".join(reversed(digits))


def build(chassis: Chassis, settings: Settings, draining: asyncio.Event) -> Wiring:
    """Wire orders."""
    changes, doorstep, limits = Changes(), Doorstep(), settings.limits
    giving_way = GiveWay()
    vault_database = Database(settings.vault_database_url, "vault", f"{NAME}/vault")
    vault = Vault(vault_database, *key_ring(settings.master_key, settings.master_keys_old))

    collector: Collector[Request, Verdict] = Collector(
        accepting(chassis, vault, giving_way, lambda: door),
        batch_max=ACCEPT_BATCH_MAX,
        waiting_max=limits.in_hand,
        wait_s_max=limits.commit_wait_s,
        rest_s=lambda: giving_way.wait_s,
    )
    door = Door(collector, doorstep, limits)
    reads = Reads(chassis.database)
    follower = Follower(reads, changes, draining)
    api = Api(
        chassis,
        collector,
        door,
        reads,
        follower,
        changes=changes,
        currency=settings.currency,
    )

    def ended(orders: Sequence[tuple[str, float]]) -> None:
        giving_way.ended(len(orders))
        _count_finished(orders)

    told = Told(changes.tell, ended, _log_contradiction, _log_conflict)
    handle = partial(advance, history=chassis.history, told=told, currency=settings.currency)
    adopting = partial(adopt, history=chassis.history, told=told, currency=settings.currency)
    at_the_door = looking(chassis, doorstep, ORDERS.stream, limits.open_orders)
    loops: list[Loop] = [follower, at_the_door, giving_way]
    if settings.orders_expire_after_s:
        loops.append(expiring(chassis, changes, settings.orders_expire_after_s))
    return Wiring(
        endpoints=endpoints(api),
        subscriptions=[
            Subscription(ORDERS, kinds_of(ORDERS), aggregate_of, adopting, own=NAME),
            Subscription(INVENTORY, kinds_of(INVENTORY), aggregate_of, handle),
            Subscription(PAYMENTS, kinds_of(PAYMENTS), aggregate_of, handle),
        ],
        loops=loops,
        background=[collector.run, vault.watch],
        accepts_without_broker=True,
        close=[vault_database.close],
    )


def accepting(
    chassis: Chassis, vault: Vault, giving_way: GiveWay, door: Callable[[], Door]
) -> Callable[[Sequence[Request]], Awaitable[list[Verdict]]]:
    """Accept a batch of orders, and tell those who look at how that goes."""

    async def commit(requests: Sequence[Request]) -> list[Verdict]:
        try:
            answers = await accept(
                requests,
                database=chassis.database,
                vault=vault,
                history=chassis.history,
                publish=chassis.outbox.hand_over,
                new_id=new_order_id,
            )
        except Unavailable as error:
            door().failed(error)
            raise
        door().committed()
        giving_way.accepted(_count_answers(answers))
        return answers

    return commit


def expiring(chassis: Chassis, changes: Changes, after_s: float) -> Rounds:
    """Undo what has taken longer than `after_s`, a batch at a time."""

    async def step() -> bool:
        undone = await expire(
            after_s,
            database=chassis.database,
            history=chassis.history,
            publish=chassis.outbox.hand_over,
        )
        expired.inc(len(undone))
        changes.tell(undone)
        return bool(undone)

    return Rounds("let orders expire", EXPIRE_EVERY_S, step)


def _count_answers(answers: Sequence[Verdict]) -> int:
    count = sum(isinstance(each, Answer) and not each.replayed for each in answers)
    accepted.inc(count)
    return count


def _count_finished(ended: Sequence[tuple[str, float]]) -> None:
    for status, age_s in ended:
        finished.labels(status).inc()
        seconds.labels(status).observe(age_s)


def _log_contradiction(order_id: str, state: str, event: str) -> None:
    structlog.get_logger().error(
        "Contradiction: a person should look", order_id=order_id, state=state, event_type=event
    )


def _log_conflict(order_id: str, event: str) -> None:
    conflicts.inc()
    structlog.get_logger().error(
        "OrderConflict: this id is another order's, the first one stands",
        order_id=order_id,
        event_type=event,
    )


TABLES = {
    "orders": "SELECT, INSERT, UPDATE",
    "idempotency_keys": "SELECT, INSERT",
    "vault.keys": "SELECT, INSERT",
}
DURABLES = (ORDERS, INVENTORY, PAYMENTS)
SERVICE = Service(NAME, subjects_of(NAME), DURABLES, Settings, build, MEMORY, TABLES)
