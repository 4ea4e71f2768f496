"""Payments over HTTP: see where the money of an order stands, give some back, hear the gateway."""

import time
import uuid
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ironcart.events import CURRENCIES, money
from ironcart.services.payments.gateway import Reply, is_signed
from ironcart.services.payments.handlers.refunds import PostRefund, Request, ask, read_refund
from ironcart.services.payments.handlers.table import TABLE
from ironcart.services.payments.handlers.webhooks import Webhook, hear
from ironcart.services.payments.store import Payment, Store
from ironcart.toolkit.database import Transaction
from ironcart.toolkit.envelope import NAME_PATTERN, Name, encode_json
from ironcart.toolkit.http import Endpoint, Operation, Parameter, Problem, json_response
from ironcart.toolkit.http.keys import KEY_PATTERN, read_key
from ironcart.toolkit.http.routes import Answer, Call, json_body, read_name, read_struct
from ironcart.toolkit.jobs import Jobs
from ironcart.toolkit.loop import Chassis
from ironcart.toolkit.outcomes import LostRace

STATES = sorted({state for state, _ in TABLE})
RACES_MAX = 3


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


class Heard(Struct, frozen=True):
    """The answer to a webhook: it is kept."""

    received: bool = True


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


class Api:
    """The routes of payments."""

    def __init__(
        self, chassis: Chassis, jobs: "Jobs[Payment, Reply]", secrets: Sequence[str]
    ) -> None:
        self._database, self._jobs, self._secrets = chassis.database, jobs, secrets

    async def get_payment(self, request: Call) -> Answer:
        """Show a payment."""
        order_id = read_name(request, "order_id")
        async with self._database.acquire() as connection:
            found = await Store(connection).find([order_id])
        if order_id not in found:
            raise Problem(404, f"payments has not heard of order {order_id}")
        return json_response(view(found[order_id]))

    async def post_refund(self, request: Call) -> Answer:
        """Begin to give money back; 202 once that is committed."""
        order_id = read_name(request, "order_id")
        key = read_key(request)
        body = await json_body(request) if await request.body() else b"{}"
        try:
            read = read_refund(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Problem(400, f"the body is not JSON: {error}") from error
        if isinstance(read, list):
            raise Problem(400, "the refund is not valid", faults=read)
        asked = Request(order_id, *read, request.caller.id, key, uuid.uuid4().hex)
        answer = await self._ask(asked)
        if isinstance(answer, Problem):
            raise answer
        return json_response(answer, 202, {"Location": f"/payments/{order_id}"})

    async def _ask(self, asked: Request) -> bytes | Problem:
        for race in range(1, RACES_MAX + 1):
            try:
                async with self._database.transaction() as connection:
                    transaction = Transaction(connection)
                    answer = await ask(asked, transaction, jobs=self._jobs, show=_written)
                break
            except LostRace:
                if race == RACES_MAX:
                    raise
        for then in transaction.after_commit:
            then()
        return answer

    async def post_webhook(self, request: Call) -> Answer:
        """Hear the gateway; 200 once that is committed."""
        if not self._secrets:
            raise Problem(503, "webhooks are off: set IRONCART_STRIPE_WEBHOOK_SECRETS")
        body = await json_body(request)
        signature = request.headers.get("stripe-signature", "")
        if not is_signed(signature, body, self._secrets, time.time()):
            raise Problem(400, "Stripe-Signature does not fit: wrong secret, body or time")
        webhook = await read_struct(request, Webhook)
        async with self._database.transaction() as connection:
            transaction = Transaction(connection)
            await hear(webhook, transaction, jobs=self._jobs)
        for then in transaction.after_commit:
            then()
        return json_response(Heard())


def _written(payment: Payment) -> bytes:
    return encode_json(view(payment))


def endpoints(api: Api) -> list[Endpoint]:
    """The routes, with their documentation."""
    text = {"type": "string"}
    order_id = Parameter("order_id", "path", "the order", text | {"pattern": NAME_PATTERN})
    key = Parameter(
        "Idempotency-Key",
        "header",
        "the same key is the same refund",
        text | {"pattern": KEY_PATTERN},
    )
    getting = Operation("See a payment", {200: PaymentView}, (400, 404), (order_id,))
    refunding = Operation(
        "Give money back; the order stays as it is",
        {202: PaymentView},
        (400, 404, 409, 413, 415, 422),
        (order_id, key),
        PostRefund,
        PostRefund(Decimal("5.00"), "damaged"),
        headers={202: {"Location": "the payment"}},
        body_optional=True,
    )
    signature = Parameter("Stripe-Signature", "header", "t=<unix seconds>,v1=<hex>", text)
    hearing = Operation(
        "Hear a webhook of Stripe: a reason to look there, never a fact",
        {200: Heard},
        (400, 413, 415),
        (signature,),
        Webhook,
    )
    return [
        Endpoint("GET", "/payments/{order_id}", api.get_payment, getting),
        Endpoint("POST", "/payments/{order_id}/refunds", api.post_refund, refunding),
        # Stripe has no key of ours: its signature says who it is.
        Endpoint("POST", "/webhooks/stripe", api.post_webhook, hearing, allows=None),
    ]
