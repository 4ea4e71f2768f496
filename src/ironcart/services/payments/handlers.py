"""Take money for orders. Above `take_orders` everything is pure; below it, `Charging` is the job.

The table is total: every state meets every event. What the gateway answered is an event too, and
only definite answers are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from ironcart.events import (
    CURRENCY_DEFAULT,
    OrderCancellationRequested,
    PaymentFailed,
    PaymentRefunded,
    PaymentSucceeded,
    PaymentVoided,
    StockReserved,
    minor_units,
    money,
)
from ironcart.services.payments.gateway import (
    Canceled,
    Created,
    Declined,
    Gateway,
    Refunded,
    Reply,
    Succeeded,
)
from ironcart.services.payments.store import Payment, Store
from ironcart.toolkit.database import Connection, Transaction
from ironcart.toolkit.history import Cause, stored_trace
from ironcart.toolkit.jobs import Jobs, Settled
from ironcart.toolkit.loop import Message
from ironcart.toolkit.outcomes import Done, Fact, Outcome, Park
from ironcart.toolkit.telemetry import context

EVENTS: Final = (StockReserved, OrderCancellationRequested, Succeeded, Declined, Canceled, Refunded)

# One row a state, one column an event, in the order of EVENTS; `=` stays. A declined card leads to
# closing: the intent is cancelled before anybody hears of the failure. A cancellation before the
# reservation leaves a tombstone. An intent that somebody else cancelled is made again (generation).
_ROWS: Final = """
none           charging voided         =         =       =        =
charging       =        voiding        succeeded closing charging =
closing        =        voiding        succeeded =       failed   =
voiding        =        =              refunding =       voided   =
refunding      =        =              =         =       =        refunded
op_refunding   =        op_then_refund =         =       =        =
op_then_refund =        =              =         =       =        =
succeeded      =        refunding      =         =       =        =
failed         =        =              refunding =       =        =
voided         =        =              refunding =       =        =
refunded       =        =              =         =       =        =
"""

TABLE: Final[Mapping[tuple[str, type], str]] = {
    (row.split()[0], event): row.split()[0] if step == "=" else step
    for row in _ROWS.strip().splitlines()
    for event, step in zip(EVENTS, row.split()[1:], strict=True)
}
JOBS: Final = frozenset(
    {"charging", "closing", "voiding", "refunding", "op_refunding", "op_then_refund"}
)


def step(payment: Payment, event: Any) -> tuple[Payment, Fact | None]:
    """Move one payment on by one event; the fact is what that has to be told as, if anything."""
    after = TABLE[payment.state, type(event)]
    moved = replace(payment, state=after)
    if isinstance(event, Declined) and after == "closing":
        moved = replace(moved, decline_code=event.code)
    if isinstance(event, Canceled) and after == "charging":
        moved = replace(moved, intent_id=None, generation=payment.generation + 1)
    if isinstance(event, Refunded) and after == "refunded":
        moved = replace(moved, refunded_minor=payment.amount_minor or 0)
    data = _told(payment, moved)
    if data is None:
        return moved, None
    moved = replace(moved, version=payment.version + 1)
    return moved, Fact(payment.order_id, moved.version, data)


def _told(before: Payment, after: Payment) -> Any:
    """What a step has to be told as; a capture found after a failure or a void is not told."""
    order_id, reference = after.order_id, after.intent_id or ""
    if after.state == "voided" and before.state != "voided":
        return PaymentVoided(order_id, reference)
    if after.amount_minor is None or after.currency is None:
        return None
    amount = money(after.amount_minor, after.currency)
    match before.state, after.state:
        case ("charging" | "closing", "succeeded") | ("voiding", "refunding"):
            return PaymentSucceeded(order_id, amount, after.currency, reference)
        case "closing", "failed":
            code = after.decline_code or ""
            return PaymentFailed(order_id, amount, after.currency, reference, code)
        case "refunding", "refunded":
            return PaymentRefunded(order_id, amount, after.currency, reference)
    return None


def begin(message: Message, state: str) -> Payment:
    """Make the row of an order that payments hears of for the first time: a tombstone at first."""
    cause = message.cause
    return Payment(
        order_id=message.envelope.aggregate_id,
        state=state,
        amount_minor=None,
        currency=None,
        payment_method=None,
        intent_id=None,
        generation=0,
        refunded_minor=0,
        decline_code=None,
        version=0,
        trace_id=cause.trace_id,
        traceparent=stored_trace(cause.context),
        causation_id=cause.causation_id,
    )


def priced(payment: Payment, order: StockReserved, currency: str, method: str) -> Payment:
    """Write down what there is to charge; raises `ValueError` when it cannot be."""
    used = order.currency or currency
    return replace(
        payment,
        amount_minor=minor_units(order.amount, used),
        currency=used,
        payment_method=order.payment_method or method,
    )


def cause_of(payment: Payment) -> Cause:
    """What the consequences of a payment carry on."""
    traceparent, _, state = payment.traceparent.partition(" ")
    inside = context({"traceparent": traceparent, "tracestate": state}, payment.trace_id)
    return Cause(payment.trace_id, inside, payment.causation_id)


@dataclass(slots=True)
class _Batch:
    """One batch's worth of decisions. `held` are the jobs that somebody is working on."""

    known: dict[str, Payment]
    held: set[str]
    currency: str
    method: str
    added: dict[str, Payment] = field(default_factory=dict)
    moved: dict[str, Payment] = field(default_factory=dict)

    def deal_with(self, message: Message) -> Outcome:
        """Decide one event; remembers what it does to the rows."""
        order_id, event = message.envelope.aggregate_id, message.data
        known = self.known.get(order_id)
        payment = begin(message, "none") if known is None else known
        if isinstance(event, StockReserved) and known is None:
            try:
                payment = priced(payment, event, self.currency, self.method)
            except ValueError as error:
                return Park(str(error))
        after, fact = step(payment, event)
        if after.state == payment.state:
            return Done()
        after = replace(after, causation_id=message.cause.causation_id)
        if after.state == "voiding" and after.intent_id is None and order_id not in self.held:
            # Nothing that could move money exists, and nobody is creating it: the door is closed.
            after, fact = step(after, Canceled())
        rows = self.moved if known is not None and order_id not in self.added else self.added
        rows[order_id] = self.known[order_id] = after
        return Done() if fact is None else Done((fact,))


async def take_orders(
    batch: Sequence[Message],
    transaction: Transaction,
    *,
    jobs: "Jobs[Payment, Reply]",
    method: str,
    currency: str = CURRENCY_DEFAULT,
) -> Sequence[Outcome]:
    """Record what is to be charged or undone, as jobs: the calls themselves come later."""
    store = Store(transaction.connection)
    undone = {
        message.envelope.aggregate_id
        for message in batch
        if isinstance(message.data, OrderCancellationRequested)
    }
    # Jobs are locked before rows, as settling does, so that the two cannot deadlock.
    held = await jobs.lock(transaction.connection, sorted(undone)) if undone else set()
    known = await store.lock({message.envelope.aggregate_id for message in batch})
    decided = _Batch(known, held, currency, method)
    outcomes = [decided.deal_with(message) for message in batch]
    if decided.added:
        await store.add(list(decided.added.values()))
    if decided.moved:
        await store.move(list(decided.moved.values()))
    open_jobs = {key: row for key, row in decided.added.items() if row.state in JOBS}
    if open_jobs:
        await jobs.add(transaction, open_jobs)
    if hasty := [key for key, row in decided.moved.items() if row.state in JOBS]:
        await jobs.hasten(transaction, hasty)
    if idle := [key for key, row in decided.moved.items() if row.state not in JOBS]:
        await jobs.drop(transaction.connection, idle)
    return outcomes


@dataclass(frozen=True, slots=True)
class Charging:
    """The work of payments: one call to the gateway for each step of a payment."""

    gateway: Gateway
    processed: Callable[[Payment, float], None]

    async def load(self, connection: Connection, keys: Sequence[str]) -> Mapping[str, Payment]:
        """Read the payments whose jobs are due."""
        found = await Store(connection).find(keys)
        return {key: payment for key, payment in found.items() if payment.state in JOBS}

    async def call(self, payload: Payment, attempts: int) -> Reply:
        """Tell the gateway what the state asks for."""
        intent_id = payload.intent_id
        match payload.state:
            case "charging" if intent_id is None:
                assert payload.amount_minor
                assert payload.currency
                assert payload.payment_method
                return await self.gateway.create(
                    order_id=payload.order_id,
                    amount_minor=payload.amount_minor,
                    currency=payload.currency,
                    method=payload.payment_method,
                    generation=payload.generation,
                    attempts=attempts,
                )
            case "charging":
                assert intent_id is not None
                return await self.gateway.confirm(intent_id, attempts)
            case "refunding":
                assert intent_id is not None
                assert payload.amount_minor
                return await self.gateway.refund(intent_id, payload.amount_minor, attempts)
            case "closing" | "voiding":
                if intent_id is None:
                    return Canceled()  # There is nothing to cancel.
                return await self.gateway.cancel(intent_id, attempts)
        raise ValueError(f"nothing can be asked for a payment that is {payload.state}")

    async def settle(
        self, connection: Connection, results: Sequence[tuple[Payment, Reply]]
    ) -> Sequence[Settled[Payment]]:
        """Write down what the gateway said; a row that moved on meanwhile decides what it means."""
        store = Store(connection)
        rows = await store.lock({payment.order_id for payment, _ in results})
        learnt = [learn(rows[payment.order_id], reply) for payment, reply in results]
        moved = [after for after, _ in learnt if after != rows[after.order_id]]
        ages_s = dict(await store.move(moved)) if moved else {}
        settled: list[Settled[Payment]] = []
        for after, fact in learnt:
            facts = () if fact is None else (fact,)
            again = after if after.state in JOBS else None
            then = partial(self.processed, after, ages_s.get(after.order_id, 0.0))
            settled.append(Settled(facts, cause_of(after), again, then))
        return settled


def learn(payment: Payment, reply: Reply) -> tuple[Payment, Fact | None]:
    """Take in one answer of the gateway; an intent is stored before anything is done with it."""
    if isinstance(reply, Created):
        if payment.intent_id is None and payment.state in JOBS:
            return replace(payment, intent_id=reply.intent_id), None
        return payment, None
    return step(payment, reply)
