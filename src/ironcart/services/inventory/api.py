"""Inventory over HTTP: see stock, set it, adjust it."""

from collections.abc import Callable
from typing import Annotated

from msgspec import Meta, Struct

from ironcart.services.inventory.handlers import adjust
from ironcart.services.inventory.store import Shelf, Store
from ironcart.toolkit.envelope import NAME_PATTERN, Name
from ironcart.toolkit.history import Cause
from ironcart.toolkit.http import Endpoint, Operation, Parameter, Problem, Scope, json_response
from ironcart.toolkit.http.routes import (
    PAGING,
    Answer,
    Call,
    read_cursor,
    read_limit,
    read_name,
    read_struct,
    trace_of,
    write_cursor,
)
from ironcart.toolkit.loop import Chassis

UNITS_MAX = 1_000_000_000_000
Units = Annotated[int, Meta(ge=0, le=UNITS_MAX)]


class Stock(Struct, frozen=True):
    """One SKU: `available` is `on_hand` less `reserved`."""

    sku: Name
    on_hand: Units
    reserved: Units
    available: Units


class StockPage(Struct, frozen=True):
    """SKUs in order."""

    items: list[Stock]
    next_cursor: str | None


class PutStock(Struct, frozen=True, forbid_unknown_fields=True):
    """Set what is on hand."""

    on_hand: Units


class Adjustment(Struct, frozen=True, forbid_unknown_fields=True):
    """Change what is on hand by a number of units."""

    delta: Annotated[int, Meta(ge=-UNITS_MAX, le=UNITS_MAX)]
    reason: Annotated[str, Meta(max_length=255, pattern=r"^[^\x00@]*\Z")] = ""


class Position(Struct, frozen=True):
    """Where a page ended."""

    after: Name


def _stock(shelf: Shelf) -> Stock:
    return Stock(shelf.sku, shelf.on_hand, shelf.reserved, shelf.available)


class Api:
    """The routes of inventory."""

    def __init__(self, chassis: Chassis) -> None:
        self._chassis = chassis

    async def list_stock(self, request: Call) -> Answer:
        """List SKUs, in order."""
        limit = read_limit(request)
        position = read_cursor(request, Position) or Position("")
        async with self._chassis.database.acquire() as connection:
            shelves = await Store(connection).page(position.after, limit)
        cursor = write_cursor(Position(shelves[-1].sku)) if len(shelves) == limit else None
        return json_response(StockPage([_stock(shelf) for shelf in shelves], cursor))

    async def get_stock(self, request: Call) -> Answer:
        """Show a SKU; one that was never stocked has 0."""
        sku = read_name(request, "sku")
        async with self._chassis.database.acquire() as connection:
            shelf = await Store(connection).shelf(sku)
        return json_response(_stock(shelf or Shelf(sku, 0, 0, 0)))

    async def put_stock(self, request: Call) -> Answer:
        """Set what is on hand."""
        body = await read_struct(request, PutStock)
        return await self._set(request, lambda _: body.on_hand, "set")

    async def post_adjustment(self, request: Call) -> Answer:
        """Change what is on hand."""
        body = await read_struct(request, Adjustment)
        reason = body.reason or "adjusted"
        return await self._set(request, lambda on_hand: on_hand + body.delta, reason)

    async def _set(self, request: Call, change: Callable[[int], int], reason: str) -> Answer:
        sku = read_name(request, "sku")
        trace = trace_of(request)
        async with self._chassis.database.transaction() as connection:
            store = Store(connection)
            before = await store.lock_shelf(sku)
            on_hand = change(before.on_hand)
            if not before.reserved <= on_hand <= UNITS_MAX:
                raise Problem(409, f"{before.reserved} are reserved, at most {UNITS_MAX} can be")
            after, fact = adjust(before, on_hand, reason, await store.told_of_order(sku))
            commit = None
            if fact is not None:
                await store.put_shelf(after)
                cause = Cause(trace.trace_id, trace)
                commit = await self._chassis.history.record(connection, [(fact, cause)])
        if commit is not None:
            self._chassis.outbox.hand_over(commit)
        return json_response(_stock(after))


def endpoints(chassis: Chassis) -> list[Endpoint]:
    """The routes, with their documentation."""
    api = Api(chassis)
    sku = Parameter("sku", "path", "the SKU", {"type": "string", "pattern": NAME_PATTERN})
    one = {200: Stock}
    listing = Operation("List stock", {200: StockPage}, (400,), PAGING)
    getting = Operation("See a SKU", one, (400,), (sku,))
    return [
        Endpoint("GET", "/stock", api.list_stock, listing, allows=Scope.STOREFRONT),
        Endpoint("GET", "/stock/{sku}", api.get_stock, getting, allows=Scope.STOREFRONT),
        Endpoint(
            "PUT",
            "/stock/{sku}",
            api.put_stock,
            Operation("Set what is on hand", one, (400, 409, 413, 415), (sku,), PutStock),
        ),
        Endpoint(
            "POST",
            "/stock/{sku}/adjustments",
            api.post_adjustment,
            Operation("Adjust what is on hand", one, (400, 409, 413, 415), (sku,), Adjustment),
        ),
    ]
