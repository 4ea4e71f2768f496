"""Payments, put together."""

import asyncio
from functools import partial
from typing import Annotated

import structlog
from msgspec import Meta, Struct
from prometheus_client import Histogram

from ironcart.events import (
    CURRENCIES,
    CURRENCY_DEFAULT,
    OrderCancellationRequested,
    StockReserved,
    aggregate_of,
    durable,
    kinds_of,
    subjects_of,
)
from ironcart.services.payments.api import endpoints
from ironcart.services.payments.gateway import Gateway, Reply
from ironcart.services.payments.handlers import Charging, take_orders
from ironcart.services.payments.store import Payment
from ironcart.toolkit.jobs import Jobs
from ironcart.toolkit.lifecycle import Service, Wiring
from ironcart.toolkit.loop import Chassis, Subscription
from ironcart.toolkit.resilience import Breaker
from ironcart.toolkit.telemetry import watch_breaker

NAME = "payments"
ORDERS = durable(NAME, "ORDERS", (OrderCancellationRequested,))
INVENTORY = durable(NAME, "INVENTORY", (StockReserved,))
ENDED = ("succeeded", "failed", "voided", "refunded")

seconds = Histogram(
    "payment_process_duration_seconds",
    "stock reserved to money settled",
    ["status"],
    buckets=(0.1, 0.3, 1, 3),
)


class Settings(Struct, frozen=True, kw_only=True):
    """What only payments is told; without an API base it is Stripe itself."""

    stripe_api_key: str
    stripe_api_base: str = ""
    payment_method: str = "pm_card_visa"
    currency: Annotated[str, Meta(pattern=f"^({'|'.join(CURRENCIES)})$")] = CURRENCY_DEFAULT


def build(chassis: Chassis, settings: Settings, _draining: asyncio.Event) -> Wiring:
    """Wire payments."""
    breaker = Breaker("gateway", on_change=watch_breaker)
    gateway = Gateway(settings.stripe_api_key, settings.stripe_api_base, breaker)
    jobs: Jobs[Payment, Reply] = Jobs(
        Charging(gateway, _count_processed),
        chassis.database,
        chassis.history,
        chassis.outbox,
        closed_for_s=breaker.wait_s,
    )
    handle = partial(
        take_orders, jobs=jobs, method=settings.payment_method, currency=settings.currency
    )
    return Wiring(
        endpoints=endpoints(chassis),
        subscriptions=[
            Subscription(ORDERS, kinds_of(ORDERS), aggregate_of, handle),
            Subscription(INVENTORY, kinds_of(INVENTORY), aggregate_of, handle),
        ],
        loops=[jobs],
        close=[gateway.close],
    )


def _count_processed(payment: Payment, age_s: float) -> None:
    if payment.state not in ENDED:
        return
    seconds.labels(payment.state).observe(age_s)
    structlog.get_logger().info(
        "Payment processed",
        order_id=payment.order_id,
        trace_id=payment.trace_id,
        status=payment.state,
    )


SERVICE = Service(NAME, subjects_of(NAME), (ORDERS, INVENTORY), Settings, build)
