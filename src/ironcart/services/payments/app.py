"""Payments, put together."""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Annotated

import structlog
from msgspec import Meta, Struct
from prometheus_client import Counter, Gauge, Histogram

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
from ironcart.services.payments.api import Api, endpoints
from ironcart.services.payments.fold import MEMORY
from ironcart.services.payments.gateway import Gateway, Reply
from ironcart.services.payments.handlers import Charging, take_orders
from ironcart.services.payments.handlers.charging import Told
from ironcart.services.payments.handlers.reconcile import TURN_S_MAX, Books, reconcile
from ironcart.services.payments.store import Payment, ReconcilerStore
from ironcart.toolkit.breakers import SharedBreaker
from ironcart.toolkit.jobs import Jobs
from ironcart.toolkit.lifecycle import Service, Wiring
from ironcart.toolkit.loop import Chassis, Subscription
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.resilience import Breaker
from ironcart.toolkit.telemetry import watch_breaker

NAME = "payments"
ORDERS = durable(NAME, "ORDERS", (OrderCancellationRequested,))
INVENTORY = durable(NAME, "INVENTORY", (StockReserved,))
ENDED = ("succeeded", "failed", "voided", "refunded")
# How often a replica asks whether it is its turn to reconcile.
TURN_EVERY_S = 30.0
BETWEEN_CALLS_S = 0.05

seconds = Histogram(
    "payment_process_duration_seconds",
    "stock reserved to money settled",
    ["status"],
    buckets=(0.1, 0.3, 1, 3),
)
findings = Counter(
    "ironcart_reconcile_findings_total", "where the gateway and we do not agree", ["kind"]
)
reconciled_at = Gauge(
    "ironcart_reconcile_last_success_seconds", "when the ledgers were last compared, unix time"
)
explained = Gauge(
    "ironcart_reconcile_explained_ratio", "part of the compared that both ledgers agree on"
)


class Settings(Struct, frozen=True, kw_only=True):
    """What only payments is told; without an API base it is Stripe itself."""

    stripe_api_key: str
    stripe_api_base: str = ""
    stripe_webhook_secrets: str = ""
    payment_method: str = "pm_card_visa"
    currency: Annotated[str, Meta(pattern=f"^({'|'.join(CURRENCIES)})$")] = CURRENCY_DEFAULT
    payments_reconcile_every_s: Annotated[float, Meta(gt=0)] = 3600.0


class Reconciling:
    """Compares the ledgers again and again, one replica at a time."""

    def __init__(self, gateway: Gateway, books: Books, every_s: float) -> None:
        self._gateway, self._books, self._every_s = gateway, books, every_s
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End what is under way, too: it is safe to begin it again."""
        self._stopping.set()

    async def run(self) -> None:
        """Compare until stopped."""
        while not self._stopping.is_set():
            try:
                await self.take_turn()
            except Unavailable as error:
                structlog.get_logger().warning("Cannot reconcile", error=str(error))
            self._gateway.forget()
            await self._pause(min(TURN_EVERY_S, self._every_s))

    async def take_turn(self) -> None:
        """Compare the ledgers, if that is due and nobody else does; raises `Unavailable`."""
        database = self._books.database
        async with database.acquire() as connection:
            turn = await ReconcilerStore(connection).claim(self._every_s, TURN_S_MAX)
        if turn is None:
            return
        try:
            done = await reconcile(self._gateway, self._books, turn, self._gently)
        except Unavailable:
            async with database.acquire() as connection:
                await ReconcilerStore(connection).give_back(TURN_EVERY_S)
            raise
        async with database.acquire() as connection:
            await ReconcilerStore(connection).finish(done.watermark, done.batch_no)
        reconciled_at.set(turn.now)
        explained.set(done.explained_ratio)
        structlog.get_logger().info("Reconciled", compared=done.compared, findings=done.findings)

    async def _gently(self) -> None:
        await self._pause(BETWEEN_CALLS_S)
        if self._stopping.is_set():
            raise Unavailable("shutting down")

    async def _pause(self, pause_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()


def build(chassis: Chassis, settings: Settings, _draining: asyncio.Event) -> Wiring:
    """Wire payments."""
    breaker = Breaker("gateway", on_change=watch_breaker)
    gateway = Gateway(settings.stripe_api_key, settings.stripe_api_base, breaker)
    jobs: Jobs[Payment, Reply] = Jobs(
        Charging(gateway, Told(_count_processed, _report)),
        chassis.database,
        chassis.history,
        chassis.outbox,
        closed_for_s=breaker.wait_s,
    )
    handle = partial(
        take_orders,
        jobs=jobs,
        method=settings.payment_method,
        currency=settings.currency,
        recovering=lambda: chassis.history.recovering,
    )
    books = Books(chassis.database, chassis.history, chassis.outbox.hand_over, jobs, _report)
    secrets = [each.strip() for each in settings.stripe_webhook_secrets.split(",") if each.strip()]
    return Wiring(
        endpoints=endpoints(Api(chassis, jobs, secrets)),
        subscriptions=[
            Subscription(ORDERS, kinds_of(ORDERS), aggregate_of, handle),
            Subscription(INVENTORY, kinds_of(INVENTORY), aggregate_of, handle),
        ],
        loops=[
            jobs,
            SharedBreaker(breaker, chassis.database),
            Reconciling(gateway, books, settings.payments_reconcile_every_s),
        ],
        close=[gateway.close],
    )


def _report(kind: str, order_id: str, intent_id: str) -> None:
    """Tell what a person should look at; an orphan was only cancelled."""
    findings.labels(kind).inc()
    log = structlog.get_logger()
    say = log.info if kind == "orphan" else log.error
    say("The gateway and payments differ", kind=kind, order_id=order_id, intent_id=intent_id)


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


TABLES = {
    "payments": "SELECT, INSERT, UPDATE",
    "refunds": "SELECT, INSERT",
    "webhooks": "INSERT",
    "reconciler": "SELECT, UPDATE",
}
SERVICE = Service(NAME, subjects_of(NAME), (ORDERS, INVENTORY), Settings, build, MEMORY, TABLES)
