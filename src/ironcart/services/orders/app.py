"""Orders, put together."""

import asyncio
import secrets
import time
from collections.abc import Sequence
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
from ironcart.services.orders.api import Api, Changes, endpoints
from ironcart.services.orders.handlers.accept import Answer, KeyReused, Request, accept
from ironcart.services.orders.handlers.advance import Told, adopt, advance
from ironcart.toolkit.collector import Collector
from ironcart.toolkit.database import Database
from ironcart.toolkit.lifecycle import Service, Wiring
from ironcart.toolkit.loop import Chassis, Subscription
from ironcart.toolkit.vault import Vault

NAME = "orders"
ORDERS = durable(NAME, "ORDERS", (OrderCreated,))
INVENTORY = durable(NAME, "INVENTORY", (StockReserved, StockRejected))
PAYMENTS = durable(
    NAME,
    "PAYMENTS",
    (PaymentSucceeded, PaymentFailed, PaymentVoided, PaymentRefunded, RefundIssued),
)
ACCEPT_BATCH_MAX = 200
ACCEPT_WAITING_MAX = 5_000
_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ID_CHARACTERS = 26

accepted = Counter("ironcart_orders_accepted_total", "orders answered with 202")
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
    currency: Annotated[str, Meta(pattern=f"^({'|'.join(CURRENCIES)})$")] = CURRENCY_DEFAULT


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
    changes = Changes()
    vault_database = Database(settings.vault_database_url, "vault", f"{NAME}/vault")
    vault = Vault(vault_database, settings.master_key)

    async def commit(requests: Sequence[Request]) -> list[Answer | KeyReused]:
        answers = await accept(
            requests,
            database=chassis.database,
            vault=vault,
            history=chassis.history,
            publish=chassis.outbox.hand_over,
            new_id=new_order_id,
        )
        new = sum(isinstance(each, Answer) and not each.replayed for each in answers)
        accepted.inc(new)
        return answers

    collector: Collector[Request, Answer | KeyReused] = Collector(
        commit, batch_max=ACCEPT_BATCH_MAX, waiting_max=ACCEPT_WAITING_MAX
    )
    told = Told(changes.tell, _count_finished, _log_contradiction)
    handle = partial(advance, history=chassis.history, told=told, currency=settings.currency)
    adopting = partial(adopt, history=chassis.history, told=told, currency=settings.currency)
    return Wiring(
        endpoints=endpoints(Api(chassis, collector, changes, draining, settings.currency)),
        subscriptions=[
            Subscription(ORDERS, kinds_of(ORDERS), aggregate_of, adopting),
            Subscription(INVENTORY, kinds_of(INVENTORY), aggregate_of, handle),
            Subscription(PAYMENTS, kinds_of(PAYMENTS), aggregate_of, handle),
        ],
        background=[collector.run],
        accepts_without_broker=True,
        close=[vault_database.close],
    )


def _count_finished(ended: Sequence[tuple[str, float]]) -> None:
    for status, age_s in ended:
        finished.labels(status).inc()
        seconds.labels(status).observe(age_s)


def _log_contradiction(order_id: str, state: str, event: str) -> None:
    structlog.get_logger().error(
        "Contradiction: a person should look", order_id=order_id, state=state, event_type=event
    )


SERVICE = Service(NAME, subjects_of(NAME), (ORDERS, INVENTORY, PAYMENTS), Settings, build)
