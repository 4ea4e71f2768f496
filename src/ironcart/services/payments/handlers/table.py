"""What a payment does about each event: a total table, so nothing depends on order of arrival.

What the gateway answered is an event too, and only definite answers are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from msgspec.structs import replace

from ironcart.events import (
    OrderCancellationRequested,
    PaymentFailed,
    PaymentRefunded,
    PaymentSucceeded,
    PaymentVoided,
    RefundIssued,
    StockReserved,
    money,
)
from ironcart.services.payments.gateway import (
    Canceled,
    Created,
    Declined,
    Found,
    OperatorRefunded,
    Refunded,
    Reply,
    Seen,
    Succeeded,
    Swept,
)
from ironcart.services.payments.store import Payment
from ironcart.toolkit.outcomes import Fact


@dataclass(frozen=True, slots=True)
class OperatorRefundAsked:
    """An operator wants to give money back; no more than is left."""

    refund_id: str
    amount_minor: int


EVENTS: Final = (
    StockReserved,
    OrderCancellationRequested,
    OperatorRefundAsked,
    Succeeded,
    Declined,
    Canceled,
    Refunded,
    OperatorRefunded,
)

# One row a state, one column an event, in the order of EVENTS; `=` stays. A declined card leads to
# closing: the intent is cancelled before anybody hears of the failure. A cancellation before the
# reservation leaves a tombstone. An intent that somebody else cancelled is made again (generation).
_ROWS: Final = """
none           charging voided         =            =         =       =        =        =
charging       =        voiding        =            succeeded closing charging =        =
closing        =        voiding        =            succeeded =       failed   =        =
voiding        =        =              =            refunding =       voided   =        =
refunding      =        =              =            =         =       =        refunded =
op_refunding   =        op_then_refund =            =         =       =        =        succeeded
op_then_refund =        =              =            =         =       =        =        refunding
succeeded      =        refunding      op_refunding =         =       =        =        =
failed         =        =              =            refunding =       =        =        =
voided         =        =              =            refunding =       =        =        =
refunded       =        =              =            =         =       =        =        =
"""

TABLE: Final[Mapping[tuple[str, type], str]] = {
    (row.split()[0], event): row.split()[0] if step == "=" else step
    for row in _ROWS.strip().splitlines()
    for event, step in zip(EVENTS, row.split()[1:], strict=True)
}
JOBS: Final = frozenset(
    {"charging", "closing", "voiding", "refunding", "op_refunding", "op_then_refund"}
)
UNRESOLVED: Final = frozenset({"charging", "closing", "voiding"})


def step(payment: Payment, event: Any) -> tuple[Payment, Fact | None]:
    """Move one payment on by one event; the fact is what that has to be told as, if anything."""
    after = TABLE[payment.state, type(event)]
    moved = replace(payment, state=after)
    match event:
        case Declined() if after == "closing":
            moved = replace(moved, decline_code=event.code)
        case Canceled() if after == "charging":
            moved = replace(moved, intent_id=None, generation=payment.generation + 1)
        case Refunded() if after == "refunded":
            refunded_minor = payment.amount_minor or 0
            moved = replace(moved, refunded_minor=refunded_minor, refunding_minor=None)
        case OperatorRefundAsked() if after == "op_refunding":
            moved = replace(moved, refund_id=event.refund_id, refunding_minor=event.amount_minor)
        case OperatorRefunded() if after != payment.state:
            moved = replace(
                moved,
                refund_id=None,
                refunding_minor=None,
                refunded_minor=max(event.total_minor, payment.refunded_minor),
            )
    data = _told(payment, moved)
    return (moved, None) if data is None else _tell(moved, data)


def learn(payment: Payment, reply: Reply) -> tuple[Payment, Fact | None]:
    """Take in one answer of the gateway; an intent is stored before anything is done with it."""
    match reply:
        case Created():
            if payment.intent_id is None and payment.state in JOBS:
                return replace(payment, intent_id=reply.intent_id), None
            return payment, None
        case Swept():
            return _swept(payment, reply)
        case Found():
            return _found(replace(payment, looking=False), reply.seen)
        case Canceled() if payment.recovering:
            return payment, None  # Said of one intent, and there may be others.
    return step(payment, reply)


def _swept(payment: Payment, reply: Swept) -> tuple[Payment, Fact | None]:
    """The gateway knows which intents there were: take on what it captured, else begin anew."""
    payment = replace(payment, recovering=False, generation=max(payment.generation, reply.intents))
    if payment.state not in UNRESOLVED:
        return payment, None
    if reply.captured is None:
        return step(payment, Canceled())
    return step(_with(payment, reply.captured), Succeeded())


def _found(payment: Payment, seen: Seen | None) -> tuple[Payment, Fact | None]:
    """Compare a payment that has ended with what the gateway shows, and follow the money."""
    if seen is None:
        return payment, None
    if payment.state in ("failed", "voided") and seen.captured_minor:
        return step(_with(payment, seen), Succeeded())
    issued = seen.refunded_minor > payment.refunded_minor
    if payment.state == "succeeded" and payment.intent_id == seen.intent_id and issued:
        moved = replace(payment, refunded_minor=seen.refunded_minor)
        return _tell(moved, _told(payment, moved))
    if payment.state == "refunded" and payment.intent_id == seen.intent_id and seen.owed_minor:
        # What was told to be on its way back has failed since: make it again, and tell nothing.
        owed, returned = seen.owed_minor, seen.refunded_minor
        again = replace(payment, state="refunding", refunding_minor=owed, refunded_minor=returned)
        return again, None
    return payment, None


def _with(payment: Payment, seen: Seen) -> Payment:
    """The intent that took the money is the one that counts."""
    return replace(
        payment,
        intent_id=seen.intent_id,
        amount_minor=payment.amount_minor or seen.amount_minor,
        currency=payment.currency or seen.currency,
        payment_method=payment.payment_method or seen.payment_method,
    )


def _tell(moved: Payment, data: Any) -> tuple[Payment, Fact | None]:
    moved = replace(moved, version=moved.version + 1)
    return moved, Fact(moved.order_id, moved.version, data)


def _told(before: Payment, after: Payment) -> Any:
    """What a step has to be told as; a capture found after a failure or a void is not told."""
    order_id, reference = after.order_id, after.intent_id or ""
    if after.state == "voided" and before.state != "voided":
        return PaymentVoided(order_id, reference)
    if after.amount_minor is None or after.currency is None:
        return None
    amount, currency = money(after.amount_minor, after.currency), after.currency
    given_back = money(after.refunded_minor - before.refunded_minor, currency)
    data: Any = None
    match before.state, after.state:
        case ("charging" | "closing", "succeeded") | ("voiding", "refunding"):
            data = PaymentSucceeded(order_id, amount, currency, reference)
        case "closing", "failed":
            code = after.decline_code or ""
            data = PaymentFailed(order_id, amount, currency, reference, code)
        case "refunding", "refunded" if before.refunding_minor is None:
            data = PaymentRefunded(order_id, given_back, currency, reference)
        case ("op_refunding" | "succeeded", "succeeded") | ("op_then_refund", "refunding"):
            data = RefundIssued(order_id, given_back, currency, reference) if given_back else None
    return data
