"""Payments over HTTP: see where the money of an order stands."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated

from msgspec import Meta, Struct

from ironcart.events import CURRENCIES, money
from ironcart.services.payments.handlers import TABLE
from ironcart.services.payments.store import Payment, Store
from ironcart.toolkit.envelope import NAME_PATTERN, Name
from ironcart.toolkit.http import Endpoint, Operation, Parameter, Problem, json_response
from ironcart.toolkit.http.routes import Answer, Call, read_name
from ironcart.toolkit.loop import Chassis

STATES = sorted({state for state, _ in TABLE})


class PaymentView(Struct, frozen=True):
    """The money of one order."""

    order_id: Name
    status: Annotated[str, Meta(extra_json_schema={"enum": STATES})]
    amount: Decimal | None
    currency: Annotated[str, Meta(extra_json_schema={"enum": list(CURRENCIES)})] | None
    refunded: Decimal | None
    reference: str | None
    decline_code: str | None
    version: int
    created_at: datetime
    updated_at: datetime


def view(payment: Payment) -> PaymentView:
    """Show a payment; a tombstone has no amount."""
    assert payment.created_at
    assert payment.updated_at
    currency, amount = payment.currency, payment.amount_minor
    return PaymentView(
        payment.order_id,
        payment.state,
        money(amount, currency) if amount is not None and currency else None,
        currency,
        money(payment.refunded_minor, currency) if currency else None,
        payment.intent_id,
        payment.decline_code,
        payment.version,
        payment.created_at,
        payment.updated_at,
    )


def endpoints(chassis: Chassis) -> list[Endpoint]:
    """The routes, with their documentation."""

    async def get_payment(request: Call) -> Answer:
        order_id = read_name(request, "order_id")
        async with chassis.database.acquire() as connection:
            found = await Store(connection).find([order_id])
        if order_id not in found:
            raise Problem(404, f"payments has not heard of order {order_id}")
        return json_response(view(found[order_id]))

    order_id = Parameter(
        "order_id", "path", "the order", {"type": "string", "pattern": NAME_PATTERN}
    )
    operation = Operation("See a payment", {200: PaymentView}, (400, 404), (order_id,))
    return [Endpoint("GET", "/payments/{order_id}", get_payment, operation)]
