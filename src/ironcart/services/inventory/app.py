"""Inventory, put together."""

import asyncio
from functools import partial
from typing import Annotated

from msgspec import Meta, Struct

from ironcart.events import (
    CURRENCIES,
    CURRENCY_DEFAULT,
    OrderCancelled,
    OrderConfirmed,
    OrderCreated,
    OrderRejected,
    aggregate_of,
    durable,
    kinds_of,
    subjects_of,
)
from ironcart.services.inventory.api import endpoints
from ironcart.services.inventory.fold import MEMORY
from ironcart.services.inventory.handlers import deal_with_orders
from ironcart.toolkit.lifecycle import Service, Wiring
from ironcart.toolkit.loop import Chassis, Subscription

NAME = "inventory"
ORDERS = durable(NAME, "ORDERS", (OrderCreated, OrderConfirmed, OrderRejected, OrderCancelled))


class Settings(Struct, frozen=True):
    """What only inventory is told: the currency of an order that names none."""

    currency: Annotated[str, Meta(pattern=f"^({'|'.join(CURRENCIES)})$")] = CURRENCY_DEFAULT


def build(chassis: Chassis, settings: Settings, _draining: asyncio.Event) -> Wiring:
    """Wire inventory."""
    handle = partial(deal_with_orders, currency=settings.currency)
    return Wiring(
        endpoints=endpoints(chassis),
        subscriptions=[Subscription(ORDERS, kinds_of(ORDERS), aggregate_of, handle)],
    )


TABLES = {
    "stock": "SELECT, INSERT, UPDATE",
    "reservations": "SELECT, INSERT, UPDATE",
}
SERVICE = Service(NAME, subjects_of(NAME), (ORDERS,), Settings, build, MEMORY, TABLES)
