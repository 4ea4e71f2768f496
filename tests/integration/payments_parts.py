"""What tests of payments share: its parts on a real database and sandbox, and a network that holds
requests back; nothing is published, as the history says what would be."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import aiohttp
import asyncpg
from aiohttp import web
from msgspec import Raw, Struct
from notifications_audit_parts import migrate, serving, until
from sandbox_parts import call

from ironcart.embedded.postgres import Postgres
from ironcart.embedded.sandbox.server import SandboxServer
from ironcart.events import OrderCancellationRequested, StockReserved, subjects_of
from ironcart.services.payments.api import Api, endpoints
from ironcart.services.payments.gateway import Gateway, Reply
from ironcart.services.payments.handlers import Charging, take_orders
from ironcart.services.payments.handlers.charging import Told
from ironcart.services.payments.handlers.reconcile import Books, Reconciled, reconcile
from ironcart.services.payments.store import Payment, Store, Turn
from ironcart.toolkit.broker import Delivery
from ironcart.toolkit.database import Database, Transaction
from ironcart.toolkit.envelope import Envelope
from ironcart.toolkit.history import Cause, History, Outbox
from ironcart.toolkit.jobs import Jobs
from ironcart.toolkit.loop import Chassis, Message
from ironcart.toolkit.outcomes import Done
from ironcart.toolkit.resilience import Breaker
from ironcart.toolkit.telemetry import TraceContext, Tracing

SECRETS = ("whsec_new", "whsec_old")
CONTEXT = TraceContext("0" * 31 + "1", "1" * 16)
ENDED = ("succeeded", "failed", "voided", "refunded")


class _Unpublished:
    """An outbox that nothing leaves."""

    def hand_over(self, _commit: Any) -> None:
        """The history has it."""


@dataclass
class Till:
    """Payments at work."""

    url: str
    sandbox: SandboxServer
    database: Database
    gateway: Gateway
    jobs: Jobs[Payment, Reply]
    history: History
    books: Books
    found: list[tuple[str, str]] = field(default_factory=list)

    async def deliver(self, *events: Struct, recovering: bool = False) -> None:
        """Have these events handled in one batch, as the loop does."""
        messages = [_message(event) for event in events]
        async with self.database.transaction() as connection:
            transaction = Transaction(connection)
            outcomes = await take_orders(
                messages,
                transaction,
                jobs=self.jobs,
                method="pm_card_visa",
                recovering=lambda: recovering,
            )
            facts = [
                (fact, message.cause)
                for message, outcome in zip(messages, outcomes, strict=True)
                for fact in cast("Done", outcome).emit
            ]
            await self.history.record(connection, facts)
        for then in transaction.after_commit:
            then()

    async def payment(self, order_id: str) -> Payment:
        """The row of an order."""
        async with self.database.acquire() as connection:
            return (await Store(connection).find([order_id]))[order_id]

    async def ended(self, order_id: str) -> Payment:
        """The row of an order, once there is nothing left to do about it."""

        async def over() -> bool:
            payment = await self.payment(order_id)
            return payment.state in ENDED and not payment.looking

        await until(over)
        return await self.payment(order_id)

    async def said(self, order_id: str) -> list[str]:
        """The types of the facts about an order, in order."""
        rows = await self.database.fetch(
            "SELECT type FROM events WHERE aggregate_id = $1 ORDER BY version", order_id
        )
        return [row["type"] for row in rows]

    async def charges(self, order_id: str) -> list[dict[str, Any]]:
        """What the gateway knows about an order."""
        path = f"sandbox/charges?order_id={order_id}"
        charges: list[dict[str, Any]] = await call(self.sandbox, "GET", path)
        return charges

    async def captured(self, order_id: str) -> tuple[int, int]:
        """How often money was taken for an order, and how much has gone back."""
        charges = await self.charges(order_id)
        taken = [charge for charge in charges if charge["captured"]]
        return len(taken), sum(charge["refunded"] for charge in taken)

    async def forget(self, order_id: str) -> None:
        """Lose an order, as a database that is restored to an earlier moment does."""
        for table, column in (("payments", "order_id"), ("events", "aggregate_id")):
            await self.database.execute(f"DELETE FROM {table} WHERE {column} = $1", order_id)

    async def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        """One request to the API; the status and the decoded body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kind = {"data": body} if isinstance(body, bytes) else {"json": body}
        if body is None:
            kind = {}
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.url + path, headers=named, **kind) as answer,
        ):
            return answer.status, await answer.json(content_type=None)

    async def reconcile(self, now: int) -> Reconciled:
        """Compare the two ledgers from the beginning."""

        async def gently() -> None:
            await asyncio.sleep(0)

        return await reconcile(self.gateway, self.books, Turn(0, 0, now), gently)


def reserved(order_id: str, **fields: Any) -> StockReserved:
    """An order of 20.00 EUR that could be reserved."""
    return StockReserved(order_id, "C-1", Decimal("20.00"), "EUR", (), **fields)


def cancelled(order_id: str) -> OrderCancellationRequested:
    """Somebody wants it undone."""
    return OrderCancellationRequested(order_id, "customer", "customer")


def new_order() -> str:
    """An id of this test's own."""
    return f"ORD-{uuid.uuid4().hex[:12]}"


def fresh_database(postgres: Postgres, postgres_url: str, name: str) -> str:
    """A database for the tests of one module; it goes with the server."""

    async def make() -> None:
        connection = await asyncpg.connect(postgres_url)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        await migrate(postgres.url_of(name), "payments")

    asyncio.run(make())
    return postgres.url_of(name)


@asynccontextmanager
async def till(
    database_url: str, sandbox: SandboxServer, *, base: str = "", failures_max: int = 10**6
) -> AsyncIterator[Till]:
    """Run payments' jobs and API; afterwards its jobs stop as in a drain."""
    database = Database(database_url, "payments", "test")
    breaker = Breaker("gateway", failures_max=failures_max, open_s=0.5)
    gateway = Gateway("sk_test_1", base or sandbox.url, breaker)
    history, outbox = History("payments", subjects_of("payments")), cast("Outbox", _Unpublished())
    found: list[tuple[str, str]] = []

    def finding(kind: str, order_id: str, _intent_id: str) -> None:
        found.append((kind, order_id))

    work = Charging(gateway, Told(lambda _payment, _age_s: None, finding))
    jobs: Jobs[Payment, Reply] = Jobs(work, database, history, outbox, closed_for_s=breaker.wait_s)
    tracing = Tracing("payments", {})
    chassis = Chassis("payments", cast("Any", None), database, history, outbox, tracing)
    books = Books(database, history, outbox.hand_over, jobs, finding)
    async with serving("payments", endpoints(Api(chassis, jobs, SECRETS))) as api:
        running = asyncio.create_task(jobs.run())
        try:
            yield Till(api.url, sandbox, database, gateway, jobs, history, books, found)
        finally:
            jobs.stop()
            await running
            await gateway.close()
            await database.close()


@dataclass
class Network:
    """The way to the gateway: `hold` keeps requests back, `release` lets them arrive late."""

    url: str
    holding: Callable[[str], bool] = lambda _path: False
    held: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    def hold(self, part: str, count: int = 1) -> None:
        """Keep the next requests whose path has this part, for ever as their callers see it."""
        left = [count]

        def take(path: str) -> bool:
            left[0] -= part in path
            return part in path and left[0] >= 0

        self.holding = take

    async def caught(self) -> None:
        """Wait until a request is held."""

        async def holds() -> bool:
            return bool(self.held)

        await until(holds)

    async def release(self) -> None:
        """Let what was held arrive, one after the other; nobody hears the answers."""
        for arrive in self.held:
            await arrive()
        self.held.clear()


@asynccontextmanager
async def network(sandbox: SandboxServer) -> AsyncIterator[Network]:
    """A network between payments and the gateway."""
    found = Network("")

    async def forward(method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, sandbox.url + path, headers=headers, data=body) as answer,
        ):
            return web.Response(
                body=await answer.read(), status=answer.status, headers=_plain(answer.headers)
            )

    async def handle(request: web.Request) -> web.Response:
        body, headers = await request.read(), _plain(request.headers)
        path = request.path_qs
        if request.method == "POST" and found.holding(path):

            async def arrive() -> None:
                await forward("POST", path, headers, body)

            found.held.append(arrive)
            await asyncio.Event().wait()
        return cast("web.Response", await forward(request.method, path, headers, body))

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    found.url = f"http://{host}:{port}"
    try:
        yield found
    finally:
        await runner.cleanup()


@asynccontextmanager
async def held_up(
    database_url: str, sandbox: SandboxServer, part: str
) -> AsyncIterator[tuple[Network, Till, str]]:
    """Payments at work on one new order, whose first request to this part of the way is held."""
    async with network(sandbox) as way, till(database_url, sandbox, base=way.url) as payments:
        order_id = new_order()
        way.hold(part)
        await payments.deliver(reserved(order_id))
        yield way, payments, order_id


def _plain(headers: Any) -> dict[str, str]:
    kept = ("authorization", "content-type", "idempotency-key", "idempotent-replayed")
    return {name: value for name, value in headers.items() if name.lower() in kept}


def _message(event: Any) -> Message:
    key = uuid.uuid4()
    envelope = Envelope(
        id=str(key),
        type=type(event).__name__,
        aggregate_id=event.order_id,
        data=Raw(b"{}"),
        timestamp=datetime.now(UTC),
        trace_id=CONTEXT.trace_id,
    )
    delivery = Delivery("S", 1, "s", b"", {}, 1, 0.0, "")
    return Message(key, envelope, event, delivery, Cause(CONTEXT.trace_id, CONTEXT, str(key)))


def paid(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The intents that took money."""
    return [row["id"] for row in rows if row["captured"]]
