"""Notifications over HTTP: who was told what, and how it went; never an address."""

import re
from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

from ironcart.services.notifications.store import Row, Store
from ironcart.toolkit.database import Database
from ironcart.toolkit.envelope import NAME_PATTERN, Name
from ironcart.toolkit.http import Endpoint, Fault, Operation, Parameter, Problem, json_response
from ironcart.toolkit.http.routes import PAGING, Answer, Call, read_cursor, read_limit, write_cursor

# Until the year 2112, which Postgres, Python and JSON all hold exactly.
INSTANT_US_MAX = 2**52

Word = Annotated[str, Meta(pattern=r"^[a-z]{1,32}\Z")]


class Item(Struct, frozen=True):
    """One notification; `reason` says why it failed, `recipient_hash` stands for address or URL.

    `message_id` of a webhook is its webhook-id, `endpoint_id` where it went.
    """

    order_id: Name
    template: Literal["confirmed", "rejected", "cancelled"]
    channel: Literal["mail", "webhook"]
    endpoint_id: Name | None
    state: Literal["due", "sent", "failed"]
    reason: str | None
    message_id: str | None
    recipient_hash: str
    created_at: datetime
    updated_at: datetime


class Page(Struct, frozen=True):
    """Notifications, newest first."""

    items: list[Item]
    next_cursor: str | None


class Position(Struct, frozen=True):
    """Where a page ended."""

    created_at_us: Annotated[int, Meta(ge=0, le=INSTANT_US_MAX)]
    order_id: Name
    template: Word
    channel: Word
    endpoint_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{0,64}\Z")] = ""


def _item(row: Row) -> Item:
    return Item(
        row.order_id,
        row.template,  # type: ignore[arg-type] # the table has a check
        row.channel,  # type: ignore[arg-type] # the table has a check
        row.endpoint_id or None,
        row.state,  # type: ignore[arg-type] # the table has a check
        row.reason,
        row.message_id,
        row.recipient_hash,
        row.created_at,
        row.updated_at,
    )


def endpoints(database: Database) -> list[Endpoint]:
    """The routes, with their documentation."""

    async def list_notifications(request: Call) -> Answer:
        order_id = request.query_params.get("order_id")
        if order_id is not None and not re.match(NAME_PATTERN, order_id):
            fault = Fault("/order_id", "use 1 to 64 of A-Z a-z 0-9 . _ -")
            raise Problem(400, "order_id is not valid", faults=[fault])
        limit = read_limit(request)
        last = read_cursor(request, Position)
        before = None
        if last is not None:
            key = (last.order_id, last.template, last.channel, last.endpoint_id)
            before = (last.created_at_us, key)
        rows = await Store(database).page(order_id, before, limit + 1)
        cursor = None
        if len(rows) > limit:
            rows = rows[:limit]
            end = rows[-1]
            cursor = write_cursor(
                Position(
                    end.created_at_us, end.order_id, end.template, end.channel, end.endpoint_id
                )
            )
        return json_response(Page([_item(row) for row in rows], cursor))

    return [Endpoint("GET", "/notifications", list_notifications, _LIST)]


_LIST = Operation(
    "List notifications, newest first",
    {200: Page},
    (400,),
    (
        Parameter(
            "order_id", "query", "only of this order", {"type": "string", "pattern": NAME_PATTERN}
        ),
        *PAGING,
    ),
)
