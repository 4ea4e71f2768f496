"""Webhooks of the gateway: they say that there is news, and are never believed about what it is."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from msgspec import Meta, Struct
from msgspec.structs import replace

from ironcart.services.payments.gateway import Reply
from ironcart.services.payments.handlers.table import JOBS
from ironcart.services.payments.store import Payment, Store
from ironcart.toolkit.database import Transaction
from ironcart.toolkit.jobs import Jobs

Id = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[!-~]+\Z")]

# What each kind can tell of an ended payment that we knew already; anything else is news.
_KNOWN: Final = frozenset(
    {
        ("succeeded", "payment_intent.succeeded"),
        ("refunded", "payment_intent.succeeded"),
        ("refunded", "charge.refunded"),
        ("failed", "payment_intent.payment_failed"),
        ("failed", "payment_intent.canceled"),
        ("voided", "payment_intent.payment_failed"),
        ("voided", "payment_intent.canceled"),
    }
)


class About(Struct, frozen=True):
    """The object that a webhook is about."""

    object: dict[str, Any]


class Webhook(Struct, frozen=True):
    """What we read of one of Stripe's events."""

    id: Id
    type: Id
    data: About


def intent_of(about: Mapping[str, Any]) -> str | None:
    """Which intent an object is, or belongs to."""
    key = "id" if about.get("object") == "payment_intent" else "payment_intent"
    found = about.get(key)
    return found if isinstance(found, str) and 0 < len(found) <= 255 and "\0" not in found else None


def is_news(payment: Payment, kind: str) -> bool:
    """Whether it is worth a look at the gateway; an open payment's own job looks anyway."""
    return payment.state not in JOBS and (payment.state, kind) not in _KNOWN


async def hear(webhook: Webhook, transaction: Transaction, *, jobs: "Jobs[Payment, Reply]") -> None:
    """Note a webhook, once, and have somebody go and look when it concerns a payment of ours."""
    store = Store(transaction.connection)
    intent_id = intent_of(webhook.data.object)
    if not await store.keep_webhook(webhook.id, webhook.type, intent_id) or intent_id is None:
        return
    order_id = await store.order_of(intent_id)
    if order_id is None:
        return  # The reconciler finds it, if it is one of ours.
    # Jobs are locked before rows, as settling does.
    await jobs.lock(transaction.connection, [order_id])
    payment = (await store.lock([order_id]))[order_id]
    if is_news(payment, webhook.type):
        await store.move([replace(payment, looking=True)])
    elif payment.state not in JOBS:
        return
    await jobs.hasten(transaction, [order_id])
