"""Draws the records as Stripe's JSON objects. Pure, so a replayed answer is the first one again."""

from typing import Any

import msgspec

from ironcart.embedded.sandbox.records import Change, Failure, Intent, Refund
from ironcart.embedded.sandbox.wire import Answer

_encode = msgspec.json.Encoder().encode


def intent_object(intent: Intent, *, with_charge: bool = False) -> dict[str, Any]:
    """A payment_intent; its latest charge as an object or as its id."""
    charge = charge_object(intent) if with_charge and intent.charge_id else intent.charge_id
    return {
        "id": intent.id,
        "object": "payment_intent",
        "amount": intent.amount,
        "amount_capturable": 0,
        "amount_received": intent.captured,
        "canceled_at": intent.canceled_at,
        "cancellation_reason": intent.cancellation_reason,
        "capture_method": "automatic",
        "client_secret": f"{intent.id}_secret_sandbox",
        "confirmation_method": "automatic",
        "created": intent.created,
        "currency": intent.currency,
        "customer": None,
        "description": intent.description,
        "last_payment_error": _last_error(intent),
        "latest_charge": charge,
        "livemode": False,
        "metadata": intent.metadata,
        "next_action": {"type": "use_stripe_sdk"} if intent.status == "requires_action" else None,
        "payment_method": intent.payment_method,
        "payment_method_types": ["card"],
        "status": intent.status,
    }


def refund_object(refund: Refund) -> dict[str, Any]:
    """A refund."""
    return {
        "id": refund.id,
        "object": "refund",
        "amount": refund.amount,
        "charge": refund.charge_id,
        "created": refund.created,
        "currency": refund.currency,
        "metadata": refund.metadata,
        "payment_intent": refund.intent_id,
        "reason": refund.reason,
        "status": "succeeded",
    }


def charge_object(intent: Intent) -> dict[str, Any]:
    """The charge of an intent's latest attempt."""
    return {
        "id": intent.charge_id,
        "object": "charge",
        "amount": intent.amount,
        "amount_captured": intent.captured,
        "amount_refunded": intent.refunded,
        "captured": intent.captured > 0,
        "created": intent.created,
        "currency": intent.currency,
        "livemode": False,
        "metadata": intent.metadata,
        "paid": intent.captured > 0,
        "payment_intent": intent.id,
        "payment_method": intent.payment_method,
        "refunded": 0 < intent.captured == intent.refunded,
        "status": "succeeded" if intent.captured else "failed",
    }


def answer_to(change: Change, *, replayed: bool = False) -> Answer:
    """The answer to the request that made this change."""
    if change.failure is not None:
        return failure_answer(change.failure, change.intent, replayed=replayed)
    if change.refund is not None:
        return Answer(200, _encode(refund_object(change.refund)), replayed)
    if change.intent is None:
        raise ValueError("a change without a record has no answer")
    return Answer(200, _encode(intent_object(change.intent)), replayed)


def failure_answer(
    failure: Failure, intent: Intent | None = None, *, replayed: bool = False
) -> Answer:
    """An error, with the intent it is about where there is one."""
    error: dict[str, Any] = {"type": failure.type, "message": failure.message}
    if failure.code is not None:
        error["code"] = failure.code
        error["doc_url"] = f"https://stripe.com/docs/error-codes/{failure.code.replace('_', '-')}"
    if failure.param is not None:
        error["param"] = failure.param
    if failure.decline_code is not None:
        error["decline_code"] = failure.decline_code
    if intent is not None:
        error["payment_intent"] = intent_object(intent)
        if failure.type == "card_error":
            error["charge"] = intent.charge_id
    return Answer(failure.status, _encode({"error": error}), replayed)


def object_answer(body: dict[str, Any]) -> Answer:
    """A 200 with this body."""
    return Answer(200, _encode(body))


def page_answer(path: str, items: list[dict[str, Any]], *, has_more: bool) -> Answer:
    """A list page."""
    return object_answer({"object": "list", "url": path, "has_more": has_more, "data": items})


def _last_error(intent: Intent) -> dict[str, Any] | None:
    decline = intent.decline
    if decline is None:
        return None
    return {
        "type": "card_error",
        "code": decline.code,
        "decline_code": decline.decline_code,
        "message": decline.message,
        "charge": intent.charge_id,
        "payment_method": {"id": decline.payment_method, "object": "payment_method"},
    }
