"""Inventory, put together."""

import asyncio

from msgspec import Struct

from ironcart.events import (
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
from ironcart.services.inventory.handlers import deal_with_orders
from ironcart.toolkit.lifecycle import Service, Wiring
from ironcart.toolkit.loop import Chassis, Subscription

NAME = "inventory"
ORDERS = durable(NAME, "ORDERS", (OrderCreated, OrderConfirmed, OrderRejected, OrderCancelled))


class Settings(Struct, frozen=True):
    """Inventory needs nothing beyond what every service does."""


def build(chassis: Chassis, _settings: Settings, _draining: asyncio.Event) -> Wiring:
    """Wire inventory."""
    return Wiring(
        endpoints=endpoints(chassis),
        subscriptions=[Subscription(ORDERS, kinds_of(ORDERS), aggregate_of, deal_with_orders)],
    )


SERVICE = Service(NAME, subjects_of(NAME), (ORDERS,), Settings, build)
