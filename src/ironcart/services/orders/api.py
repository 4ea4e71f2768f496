"""Orders over HTTP: place, read, list, cancel and follow."""

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, cast

import msgspec
from litestar.response import Stream
from msgspec import Meta, Struct

from ironcart.events import CURRENCY_DEFAULT, Item, money
from ironcart.services.orders.handlers.accept import Accepted, Answer, KeyReused, Request, cancel
from ironcart.services.orders.handlers.check import CurrencyCode, Draft, PostItem, PostOrder, check
from ironcart.services.orders.handlers.table import STATUSES, TERMINAL, Status
from ironcart.services.orders.store import Order, Store, Told
from ironcart.toolkit.collector import Collector
from ironcart.toolkit.envelope import NAME_PATTERN, Instant, Name, encode_json
from ironcart.toolkit.history import Cause
from ironcart.toolkit.http import Endpoint, Fault, Operation, Parameter, Problem, json_response
from ironcart.toolkit.http.routes import (
    PAGING,
    Call,
    json_body,
    read_cursor,
    read_limit,
    read_name,
    trace_of,
    write_cursor,
)
from ironcart.toolkit.http.routes import Answer as HttpAnswer
from ironcart.toolkit.loop import Chassis
from ironcart.toolkit.outcomes import Unavailable

KEY_CHARACTERS_MAX = 255
WAIT_S_MAX = 30.0
# Another replica's changes are not heard here: look now and then.
LOOK_AGAIN_S = 0.5
COMMENT_EVERY_S = 15.0
# While authentication is off, everybody is this caller.
CALLER = "anonymous"
BY_CUSTOMER = "customer"
KEY_PATTERN = (
    rf'^("[\x20-\x21\x23-\x7e]{{1,{KEY_CHARACTERS_MAX}}}"|[\x21\x23-\x7e]'
    rf"([\x20-\x7e]{{0,{KEY_CHARACTERS_MAX - 2}}}[\x21-\x7e])?)\Z"
)
# RFC 7240: names are the same in capitals, a value may be quoted, what is odd is ignored.
_WAIT = re.compile(r'(?i)(?:^|,)\s*wait\s*=\s*("?)([0-9]+)\1\s*(?:$|[,;])')
# Cursors from nowhere must not reach times that Postgres cannot hold.
_CURSOR_YEARS = range(1970, 2200)


class OrderView(Struct, frozen=True):
    """An order as callers see it."""

    order_id: Name
    status: Status
    customer_id: Name
    amount: Decimal
    currency: CurrencyCode
    items: tuple[Item, ...]
    reason: str | None
    version: Annotated[int, Meta(ge=1)]
    created_at: datetime
    updated_at: datetime


_STATUS_AFTER = {
    "OrderCreated": "pending",
    "OrderCancellationRequested": "cancelling",
    "OrderConfirmed": "confirmed",
    "OrderRejected": "rejected",
    "OrderCancelled": "cancelled",
}


class OrderEvent(Struct, frozen=True):
    """One event of a stream (SSE): `data` is the order as it was then."""

    id: Annotated[str, Meta(pattern=r"^[1-9][0-9]*\Z", description="the order's version")]
    event: Annotated[str, Meta(extra_json_schema={"enum": list(_STATUS_AFTER)})]
    data: Annotated[
        str,
        Meta(
            extra_json_schema={
                "contentMediaType": "application/json",
                "contentSchema": {"$ref": "#/components/schemas/OrderView"},
            }
        ),
    ]


class OrderPage(Struct, frozen=True):
    """Orders, newest first."""

    items: list[OrderView]
    next_cursor: str | None


class Position(Struct, frozen=True):
    """Where a page ended."""

    created_at: Instant
    order_id: Name

    def __post_init__(self) -> None:
        if self.created_at.year not in _CURSOR_YEARS:
            raise ValueError("not a time of ours")


class Changes:
    """Wakes those who follow an order when this process has changed it."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def tell(self, order_ids: Collection[str]) -> None:
        """Wake everybody who follows one of these orders."""
        if self._waiting:
            for order_id in order_ids:
                for event in self._waiting.get(order_id, ()):
                    event.set()

    @contextmanager
    def following(self, order_id: str) -> Iterator[asyncio.Event]:
        """An event that is set at each change of this order."""
        event = asyncio.Event()
        self._waiting.setdefault(order_id, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[order_id].discard(event)
            if not self._waiting[order_id]:
                del self._waiting[order_id]


def view(order: Order) -> OrderView:
    """Show an order that is known."""
    assert order.status
    assert order.customer_id
    assert order.currency
    assert order.items is not None
    assert order.amount_minor
    assert order.created_at
    assert order.updated_at
    return OrderView(
        order.order_id,
        order.status,
        order.customer_id,
        money(order.amount_minor, order.currency),
        order.currency,
        # Already as it travels: what is kept is handed through, not read and written again.
        cast("tuple[Item, ...]", msgspec.Raw(order.items)),
        order.reason,
        order.version,
        order.created_at,
        order.updated_at,
    )


class Api:
    """The routes of orders."""

    def __init__(
        self,
        chassis: Chassis,
        collector: Collector[Request, Answer | KeyReused],
        changes: Changes,
        draining: asyncio.Event,
        currency: str,
    ) -> None:
        self._chassis, self._collector = chassis, collector
        self._changes, self._draining, self._currency = changes, draining, currency

    async def post_order(self, request: Call) -> HttpAnswer:
        """Accept an order; 202 once it is committed."""
        key = read_key(request)
        wait_s = read_wait_s(request)
        draft = self._read(await json_body(request))
        trace = trace_of(request)
        accepted = await self._collector.submit(
            Request(draft, CALLER, key, Cause(trace.trace_id, trace))
        )
        if isinstance(accepted, KeyReused):
            raise Problem(422, "this Idempotency-Key was used with another body: use a new key")
        body: Any = accepted.body
        if wait_s:
            with suppress(Unavailable):  # The order is accepted, whatever becomes of the waiting.
                body = view(await self._until_terminal(accepted.order_id, wait_s))
        return json_response(body, 202, {"Location": f"/orders/{accepted.order_id}"})

    def _read(self, body: bytes) -> Draft:
        try:
            read = check(body, currency=self._currency)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Problem(400, f"the body is not JSON: {error}") from error
        if isinstance(read, list):
            raise Problem(400, "the order is not valid", faults=read)
        return read

    async def _until_terminal(self, order_id: str, wait_s: float) -> Order:
        order = await self._find(order_id)
        with self._changes.following(order_id) as changed, suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while order.status not in TERMINAL and not self._draining.is_set():
                    await _either(changed)
                    order = await self._find(order_id)
        return order

    async def get_order(self, request: Call) -> HttpAnswer:
        """Show an order."""
        return json_response(view(await self._find(read_name(request, "order_id"))))

    async def _find(self, order_id: str) -> Order:
        async with self._chassis.database.acquire() as connection:
            order = await Store(connection).find(order_id)
        if order is None:
            raise Problem(404, f"there is no order {order_id}")
        return order

    async def list_orders(self, request: Call) -> HttpAnswer:
        """List orders, newest first."""
        status, customer_id = (request.query_params.get(n) for n in ("status", "customer_id"))
        if status is not None and status not in STATUSES:
            fault = Fault("/status", f"use one of {', '.join(STATUSES)}")
            raise Problem(400, "status is not valid", faults=[fault])
        if customer_id is not None and not re.match(NAME_PATTERN, customer_id):
            fault = Fault("/customer_id", "use 1 to 64 of A-Z a-z 0-9 . _ -")
            raise Problem(400, "customer_id is not valid", faults=[fault])
        limit = read_limit(request)
        position = read_cursor(request, Position)
        async with self._chassis.database.acquire() as connection:
            orders = await Store(connection).page(
                status=status,
                customer_id=customer_id,
                before=(position.created_at, position.order_id) if position else None,
                limit=limit,
            )
        cursor = None
        if len(orders) == limit and (at := orders[-1].created_at) is not None:
            cursor = write_cursor(Position(at, orders[-1].order_id))
        return json_response(OrderPage([view(order) for order in orders], cursor))

    async def cancel_order(self, request: Call) -> HttpAnswer:
        """Ask for an order to be undone."""
        order_id = read_name(request, "order_id")
        trace = trace_of(request)
        order = await cancel(
            order_id,
            database=self._chassis.database,
            history=self._chassis.history,
            publish=self._chassis.outbox.hand_over,
            cause=Cause(trace.trace_id, trace),
            reason=BY_CUSTOMER,
        )
        if order is None:
            raise Problem(404, f"there is no order {order_id}")
        if order.status in ("confirmed", "rejected"):
            raise Problem(409, f"the order is {order.status}: it cannot be cancelled")
        self._changes.tell([order_id])
        return json_response(view(order), 202)

    async def follow_order(self, request: Call) -> HttpAnswer:
        """Stream an order's events (SSE) until it has ended."""
        order = await self._find(read_name(request, "order_id"))
        last = request.headers.get("last-event-id", "")
        after = int(last) if re.fullmatch("[0-9]{1,9}", last) else 0
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return Stream(self._events(order, after), media_type="text/event-stream", headers=headers)

    async def _events(self, order: Order, after: int) -> AsyncIterator[bytes]:
        base = view(order)
        quiet_s = 0.0
        with self._changes.following(order.order_id) as changed:
            while not self._draining.is_set():
                async with self._chassis.database.acquire() as connection:
                    told = await Store(connection).told(order.order_id, after)
                for each in told:
                    shown = _as_of(base, each)
                    after, quiet_s = each.version, 0.0
                    yield b"id: %d\nevent: %b\ndata: %b\n\n" % (
                        each.version,
                        each.type.encode(),
                        encode_json(shown),
                    )
                    if shown.status in TERMINAL:
                        return
                if (now := await self._find(order.order_id)).status in TERMINAL and (
                    now.version <= after
                ):
                    return
                await _either(changed)
                quiet_s += LOOK_AGAIN_S
                if quiet_s >= COMMENT_EVERY_S:
                    quiet_s = 0.0
                    yield b": still here\n\n"


async def _either(changed: asyncio.Event) -> None:
    """Wait for a change, or for the time to look again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_AGAIN_S):
            await changed.wait()
    changed.clear()


class _Telling(Struct, frozen=True):
    reason: str | None = None


class _Body(Struct, frozen=True):
    timestamp: datetime
    data: _Telling


def _as_of(order: OrderView, told: Told) -> OrderView:
    """Show an order as it was when it said this."""
    body = msgspec.json.decode(told.body, type=_Body)
    status = _STATUS_AFTER.get(told.type, order.status)
    return msgspec.structs.replace(
        order,
        status=status,
        reason=body.data.reason,
        version=told.version,
        updated_at=body.timestamp,
    )


def read_key(request: Call) -> str | None:
    """Read Idempotency-Key, quoted or bare alike; None when there is none."""
    given = request.headers.get("idempotency-key")
    if given is None:
        return None
    given = given.strip(" \t")
    if not re.match(KEY_PATTERN, given):
        raise Problem(
            400, f"Idempotency-Key must be 1 to {KEY_CHARACTERS_MAX} printable characters"
        )
    return given[1:-1] if given.startswith('"') else given


def read_wait_s(request: Call) -> float:
    """Read `Prefer: wait=N`, at most `WAIT_S_MAX`; 0 when there is none."""
    match = _WAIT.search(",".join(request.headers.getall("prefer", [])))
    return min(float(match[2]), WAIT_S_MAX) if match else 0.0


def endpoints(api: Api) -> list[Endpoint]:
    """The routes, with their documentation."""
    text = {"type": "string"}
    order_id = Parameter("order_id", "path", "the order", text | {"pattern": NAME_PATTERN})
    example = PostOrder(
        "C-1", [PostItem("SKU-1", 2, Decimal("19.99"))], CURRENCY_DEFAULT, email="a@b.example"
    )
    key = text | {"pattern": KEY_PATTERN}
    waiting = f"wait=N: wait N seconds, at most {WAIT_S_MAX:g}, for the order to end, and show it"
    posting = Operation(
        "Place an order",
        {202: Accepted},
        (400, 413, 415, 422),
        (
            Parameter("Idempotency-Key", "header", "the same key is the same order", key),
            Parameter("Prefer", "header", waiting, text),
        ),
        PostOrder,
        example,
        headers={202: {"Location": "the order"}},
    )
    listing = Operation(
        "List orders",
        {200: OrderPage},
        (400,),
        (
            Parameter("status", "query", "only these", {"type": "string", "enum": list(STATUSES)}),
            Parameter("customer_id", "query", "only theirs", text | {"pattern": NAME_PATTERN}),
            *PAGING,
        ),
    )
    cancelling = Operation("Cancel an order", {202: OrderView}, (400, 404, 409), (order_id,))
    following = Operation(
        "Follow an order",
        {200: OrderEvent},
        (400, 404),
        (order_id, Parameter("Last-Event-ID", "header", "resume after this version", text)),
        media_type="text/event-stream",
    )
    getting = Operation("See an order", {200: OrderView}, (400, 404), (order_id,))
    return [
        Endpoint("POST", "/orders", api.post_order, posting),
        Endpoint("GET", "/orders", api.list_orders, listing),
        Endpoint("GET", "/orders/{order_id}", api.get_order, getting),
        Endpoint("POST", "/orders/{order_id}/cancel", api.cancel_order, cancelling),
        Endpoint("GET", "/orders/{order_id}/events", api.follow_order, following),
    ]
