"""The routes of orders."""

import re
from contextlib import suppress
from typing import Any

import msgspec
from litestar.response import Stream

from ironcart.services.orders.api.door import Door, Places
from ironcart.services.orders.api.following import Changes, Follower
from ironcart.services.orders.api.headers import read_wait_s
from ironcart.services.orders.api.reads import Reads
from ironcart.services.orders.api.views import OrderPage, Position, view
from ironcart.services.orders.handlers.accept import Answer, KeyReused, Request, Unsealed
from ironcart.services.orders.handlers.admit import LONG_S, RETRY
from ironcart.services.orders.handlers.check import Draft, check
from ironcart.services.orders.handlers.table import STATUSES
from ironcart.services.orders.handlers.undo import cancel
from ironcart.services.orders.store import Order
from ironcart.toolkit.envelope import NAME_PATTERN
from ironcart.toolkit.history import Cause
from ironcart.toolkit.http import Fault, Problem, Scope, json_response
from ironcart.toolkit.http.access import ANONYMOUS
from ironcart.toolkit.http.keys import read_key
from ironcart.toolkit.http.problems import retry_after
from ironcart.toolkit.http.routes import Answer as HttpAnswer
from ironcart.toolkit.http.routes import (
    Call,
    json_body,
    leave_early,
    read_cursor,
    read_limit,
    read_name,
    trace_of,
    write_cursor,
)
from ironcart.toolkit.loop import Chassis
from ironcart.toolkit.outcomes import Unavailable

BY_CUSTOMER, BY_OPERATOR = "customer", "operator"


class Api:
    """The routes of orders."""

    def __init__(
        self,
        chassis: Chassis,
        collector: Places,
        door: Door,
        reads: Reads,
        follower: Follower,
        *,
        changes: Changes,
        currency: str,
    ) -> None:
        self._chassis, self._collector, self.door = chassis, collector, door
        self._reads, self._follower, self._changes = reads, follower, changes
        self._currency = currency

    async def post_order(self, request: Call) -> HttpAnswer:
        """Accept an order; 202 once it is committed."""
        accepted = await self._accept(request)
        leave_early(request)
        body: Any = accepted.body
        # Where too many wait already, the order is accepted all the same, and not waited for.
        caller = request.caller
        if (wait_s := read_wait_s(request)) and not self._changes.full_for(caller):
            with suppress(Unavailable):  # The order is accepted, whatever becomes of the waiting.
                order = await self._follower.until_terminal(accepted.order_id, wait_s, caller)
                body = body if order is None else view(order)
        return json_response(body, 202, {"Location": f"/orders/{accepted.order_id}"})

    async def _accept(self, request: Call) -> Answer:
        key = read_key(request)
        draft = self._read(await json_body(request))
        trace = trace_of(request)
        caller = request.caller
        cause = Cause(trace.trace_id, trace)
        placing = Request(draft, caller.id, key, cause, caller is not ANONYMOUS)
        try:
            # With a key, not knowing is safe: whoever asks again is told. Without one we wait for
            # the truth of a commit that has begun, which the database's own time-outs bound.
            accepted = await self._collector.submit(placing, hurried=key is not None)
        except TimeoutError:
            wait_s = self._collector.expected_wait_s()
            said = f"it is not known yet whether the order was accepted: {RETRY}"
            raise Problem(503, said, headers=retry_after(wait_s)) from None
        if isinstance(accepted, KeyReused):
            raise Problem(422, "this Idempotency-Key was used with another body: use a new key")
        if isinstance(accepted, Unsealed):
            said = f"this customer's contact cannot be kept now, a person has been told: {RETRY}"
            raise Problem(503, said, headers=retry_after(LONG_S))
        return accepted

    def _read(self, body: bytes) -> Draft:
        try:
            read = check(body, currency=self._currency)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Problem(400, f"the body is not JSON: {error}") from error
        if isinstance(read, list):
            raise Problem(400, "the order is not valid", faults=read)
        return read

    async def get_order(self, request: Call) -> HttpAnswer:
        """Show an order."""
        return json_response(view(await self._find(request)))

    async def _find(self, request: Call) -> Order:
        """Find the order of a path; what a caller does not see is not there."""
        order_id = read_name(request, "order_id")
        order = await self._reads.find(order_id)
        if order is None or not request.caller.sees(order.caller):
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
        async with self._reads.store() as store:
            orders = await store.page(
                status=status,
                customer_id=customer_id,
                before=(position.created_at, position.order_id) if position else None,
                limit=limit,
                placed_by=None if request.caller.scope is Scope.OPERATOR else request.caller.id,
            )
        cursor = None
        if len(orders) == limit and (at := orders[-1].created_at) is not None:
            cursor = write_cursor(Position(at, orders[-1].order_id))
        return json_response(OrderPage([view(order) for order in orders], cursor))

    async def cancel_order(self, request: Call) -> HttpAnswer:
        """Ask for an order to be undone."""
        order_id = read_name(request, "order_id")
        trace = trace_of(request)
        caller = request.caller
        ordinary = caller is ANONYMOUS or caller.scope is not Scope.OPERATOR
        async with self._reads.place():
            order = await cancel(
                order_id,
                database=self._chassis.database,
                history=self._chassis.history,
                publish=self._chassis.outbox.hand_over,
                cause=Cause(trace.trace_id, trace),
                reason=BY_CUSTOMER if ordinary else BY_OPERATOR,
                by=caller,
            )
        if order is None:
            raise Problem(404, f"there is no order {order_id}")
        if order.status in ("confirmed", "rejected"):
            raise Problem(409, f"the order is {order.status}: it cannot be cancelled")
        self._changes.tell([order_id])
        return json_response(view(order), 202)

    async def follow_order(self, request: Call) -> HttpAnswer:
        """Stream an order's events (SSE) until it has ended."""
        order = await self._find(request)
        if self._changes.full:
            raise Problem(503, "too many follow orders already", headers=retry_after(1.0))
        caller = request.caller
        if self._changes.full_for(caller):
            raise Problem(429, "you follow too many orders already", headers=retry_after(1.0))
        last = request.headers.get("last-event-id", "")
        after = int(last) if re.fullmatch("[0-9]{1,9}", last) else 0
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        told = self._follower.events(order, after, caller, request.still_allowed)
        return Stream(told, media_type="text/event-stream", headers=headers)
