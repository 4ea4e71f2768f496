"""Take in events: record what is to be charged or undone, as jobs; the calls come later."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from ironcart.events import CURRENCY_DEFAULT, OrderCancellationRequested, StockReserved, minor_units
from ironcart.services.payments.gateway import Canceled, Reply
from ironcart.services.payments.handlers.table import JOBS, step
from ironcart.services.payments.store import Payment, Store
from ironcart.toolkit.database import Transaction
from ironcart.toolkit.history import stored_trace
from ironcart.toolkit.jobs import Jobs
from ironcart.toolkit.loop import Message
from ironcart.toolkit.outcomes import Done, Outcome, Park


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


@dataclass(slots=True)
class _Batch:
    """One batch's worth of decisions. `held` are the jobs that somebody is working on.

    While `recovering`, the gateway may know an order that we do not: nothing about its money is
    told before the gateway has been looked at.
    """

    known: dict[str, Payment]
    held: set[str]
    currency: str
    method: str
    recovering: bool = False
    added: dict[str, Payment] = field(default_factory=dict)
    moved: dict[str, Payment] = field(default_factory=dict)

    def deal_with(self, message: Message) -> Outcome:
        """Decide one event; remembers what it does to the rows."""
        order_id, event = message.envelope.aggregate_id, message.data
        known = self.known.get(order_id)
        payment = begin(message, "none") if known is None else known
        if known is None and self.recovering:
            payment = replace(payment, recovering=True)
        if isinstance(event, StockReserved) and known is None:
            try:
                payment = priced(payment, event, self.currency, self.method)
            except ValueError as error:
                return Park(str(error))
        after, fact = step(payment, event)
        if after.recovering and known is None and after.state == "voided":
            after, fact = replace(payment, state="voiding"), None
        if after.state == payment.state:
            return Done()
        after = replace(after, causation_id=message.cause.causation_id)
        unheld = order_id not in self.held and not after.recovering
        if after.state == "voiding" and after.intent_id is None and unheld:
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
    recovering: Callable[[], bool] = lambda: False,
) -> Sequence[Outcome]:
    """Record what is to be charged or undone, as jobs.

    `recovering` says whether the database has been restored to an earlier moment: see `_Batch`.
    """
    store = Store(transaction.connection)
    undone = {
        message.envelope.aggregate_id
        for message in batch
        if isinstance(message.data, OrderCancellationRequested)
    }
    # Jobs are locked before rows, as settling does, so that the two cannot deadlock.
    held = await jobs.lock(transaction.connection, sorted(undone)) if undone else set()
    known = await store.lock({message.envelope.aggregate_id for message in batch})
    decided = _Batch(known, held, currency, method, recovering())
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
    idle = [key for key, row in decided.moved.items() if row.state not in JOBS and not row.looking]
    if idle:
        await jobs.drop(transaction.connection, idle)
    return outcomes
