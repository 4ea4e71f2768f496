"""What payments' own facts say about its table: how it is put together again from what was told."""

from collections.abc import Sequence

from msgspec.structs import replace

from ironcart.events import (
    OWNERS,
    PaymentFailed,
    PaymentRefunded,
    PaymentSucceeded,
    PaymentVoided,
    RefundIssued,
    minor_units,
)
from ironcart.services.payments.handlers.table import JOBS
from ironcart.services.payments.store import Payment, Store
from ironcart.toolkit.database import Connection
from ironcart.toolkit.history import stored_trace
from ironcart.toolkit.recovery import Compared, Memory, OwnFact

# What was asked of the gateway is not told; nothing is charged by it any more.
METHOD_FORGOTTEN = "forgotten"

Told = PaymentSucceeded | PaymentFailed | PaymentVoided | PaymentRefunded | RefundIssued


def state_after(before: str, data: Told) -> str:
    """The state that a fact of ours leads to."""
    match data:
        case PaymentSucceeded():
            return "refunding" if before == "voiding" else "succeeded"
        case PaymentFailed():
            return "failed"
        case PaymentVoided():
            return "voided"
        case PaymentRefunded():
            return "refunded"
    # Where the fact of the capture was lost with the database, this one proves that there was one.
    after_refund = {"op_refunding": "succeeded", "op_then_refund": "refunding", "none": "succeeded"}
    return after_refund.get(before, before)


def fold_one(payment: Payment | None, fact: OwnFact) -> Payment:
    """Apply one fact to one row."""
    data: Told = fact.data
    row = _unseen(fact) if payment is None else payment
    row = replace(
        row,
        state=state_after(row.state, data),
        version=fact.version,
        recovering=False,
        intent_id=data.reference or row.intent_id,
        refund_id=None,
        refunding_minor=None,
    )
    if isinstance(data, PaymentVoided):
        return row
    units = minor_units(data.amount, data.currency)
    if isinstance(data, PaymentRefunded | RefundIssued):
        return replace(
            row,
            # A capture after a void is told by its refund alone.
            amount_minor=row.amount_minor or units,
            currency=data.currency,
            payment_method=row.payment_method or METHOD_FORGOTTEN,
            refunded_minor=row.refunded_minor + units,
        )
    code = data.decline_code if isinstance(data, PaymentFailed) else row.decline_code
    return replace(
        row,
        amount_minor=units,
        currency=data.currency,
        payment_method=row.payment_method or METHOD_FORGOTTEN,
        decline_code=code,
    )


def _unseen(fact: OwnFact) -> Payment:
    return Payment(
        order_id=fact.aggregate_id,
        state="none",
        amount_minor=None,
        currency=None,
        payment_method=None,
        intent_id=None,
        generation=0,
        refunded_minor=0,
        decline_code=None,
        version=0,
        trace_id=fact.envelope.trace_id,
        traceparent=stored_trace(fact.recorded.context),
        causation_id=fact.envelope.causation_id or None,
    )


async def fold(facts: Sequence[OwnFact], connection: Connection) -> None:
    """Apply facts, in order, to the table."""
    store = Store(connection)
    known = await store.lock({fact.aggregate_id for fact in facts})
    now = dict(known)
    for fact in facts:
        now[fact.aggregate_id] = fold_one(now.get(fact.aggregate_id), fact)
    if added := [row for order_id, row in now.items() if order_id not in known]:
        await store.add(added)
    if moved := [row for order_id, row in now.items() if order_id in known]:
        await store.move(moved)


async def go_on(connection: Connection) -> None:
    """After all is folded: whatever is open is looked for at the gateway before anything else."""
    await Store(connection).mark_recovering()
    await connection.execute(
        "DELETE FROM jobs j USING payments p WHERE j.key = p.order_id"
        " AND p.state <> ALL($1::text[]) AND NOT p.looking",
        sorted(JOBS),
    )
    await connection.execute(
        "INSERT INTO jobs (key, due_at) SELECT order_id, now() FROM payments"
        " WHERE state = ANY($1::text[]) ON CONFLICT DO NOTHING",
        sorted(JOBS),
    )


# Between two facts a row says more than has been told; a tombstone has no amount.
_UNSETTLED = """
d.order_id IN (SELECT order_id FROM {schema}.payments
               WHERE state NOT IN ('succeeded', 'failed', 'voided', 'refunded'))
"""
_COMPARED = """
SELECT order_id, state, version, refunded_minor,
       CASE WHEN state <> 'voided' THEN amount_minor END AS amount_minor,
       CASE WHEN state <> 'voided' THEN currency END AS currency,
       coalesce(intent_id, '') AS intent_id,
       CASE WHEN state = 'failed' THEN coalesce(decline_code, '') END AS decline_code
FROM {schema}.payments
"""
STREAM, _KINDS = OWNERS["payments"]
MEMORY = Memory(
    STREAM,
    {subject: kind for kind, subject in _KINDS.items()},
    fold,
    [Compared("payments", _COMPARED, _UNSETTLED)],
    after_fold=go_on,
)
