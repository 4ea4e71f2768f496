"""Orders as callers see them: now, as they were, and page by page."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, cast

import msgspec
from msgspec import Meta, Struct

from ironcart.events import Item, money
from ironcart.services.orders.handlers.check import CurrencyCode
from ironcart.services.orders.handlers.table import Status
from ironcart.services.orders.store import Order, Told
from ironcart.toolkit.envelope import Instant, Name

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


STATUS_AFTER = {
    "OrderCreated": "pending",
    "OrderCancellationRequested": "cancelling",
    "OrderConfirmed": "confirmed",
    "OrderRejected": "rejected",
    "OrderCancelled": "cancelled",
}


class OrderEvent(Struct, frozen=True):
    """One event of a stream (SSE): `data` is the order as it was then."""

    id: Annotated[str, Meta(pattern=r"^[1-9][0-9]*\Z", description="the order's version")]
    event: Annotated[str, Meta(extra_json_schema={"enum": list(STATUS_AFTER)})]
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


class _Telling(Struct, frozen=True):
    reason: str | None = None


class _Body(Struct, frozen=True):
    timestamp: datetime
    data: _Telling


def as_of(order: OrderView, told: Told) -> OrderView:
    """Show an order as it was when it said this."""
    body = msgspec.json.decode(told.body, type=_Body)
    status = STATUS_AFTER.get(told.type, order.status)
    return msgspec.structs.replace(
        order,
        status=status,
        reason=body.data.reason,
        version=told.version,
        updated_at=body.timestamp,
    )
