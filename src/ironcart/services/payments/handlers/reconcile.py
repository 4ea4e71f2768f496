"""The gateway's ledger and ours, compared both ways: what is safe to repair is, the rest is told.

Nothing here can take money: an intent is cancelled, a capture is written down, or a person hears.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from ironcart.services.payments.gateway import Found, Gateway, Reply, Seen, Succeeded
from ironcart.services.payments.handlers.charging import (
    LATE_CAPTURE,
    UNKNOWN_INTENT,
    cause_of,
    goes_on,
)
from ironcart.services.payments.handlers.table import UNRESOLVED, learn
from ironcart.services.payments.store import Payment, ReconcilerStore, Store, Turn
from ironcart.toolkit.database import Database, Transaction
from ironcart.toolkit.history import Commit, History
from ironcart.toolkit.jobs import Jobs
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.resilience import BreakerOpen

# An open intent may be about to be stored or used; one that is older is not.
ORPHAN_AGE_S_MIN = 3_600
ORPHAN_OPEN = "orphan_open"
# Intents this much older than the watermark are read again: they may have changed late.
LOOK_BACK_S = 2 * 3_600
# A commit may become visible after a later one.
BATCHES_AGAIN = 1_000
ROWS_MAX = 200
# When a replica dies over its turn, another one takes it after this; a page takes much less.
TURN_S_MAX = 300.0
PAID = ("succeeded", "refunding", "refunded", "op_refunding", "op_then_refund")
CANCEL, FOLLOW, SWEEP, TELL = "cancel", "follow", "sweep", "tell"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the two ledgers do not agree on, and what to do about it."""

    kind: str
    repair: str = TELL


def judge(seen: Seen, payment: Payment | None, age_s: int) -> Finding | None:
    """Compare one intent that names an order with what we have of that order; None: it fits."""
    if payment is None:
        return Finding("captured_for_unknown_order") if seen.captured_minor else None
    ours = payment.intent_id == seen.intent_id
    if seen.captured_minor:
        return _judge_capture(seen, payment) if ours else _judge_other_capture(seen, payment)
    if ours and payment.state in PAID:
        return Finding("not_captured")
    unused = seen.is_open and not (ours and payment.state in UNRESOLVED)
    return Finding("orphan", CANCEL) if unused and age_s >= ORPHAN_AGE_S_MIN else None


def _judge_capture(seen: Seen, payment: Payment) -> Finding | None:
    """Compare the capture of the intent that we have stored."""
    if (seen.captured_minor, seen.currency) != (payment.amount_minor, payment.currency):
        return Finding("amount_differs")
    extra_minor = seen.refunded_minor - payment.refunded_minor
    match payment.state:
        case "failed" | "voided" if seen.refunded_minor < seen.captured_minor:
            return Finding(LATE_CAPTURE, FOLLOW)
        case "succeeded" | "refunded" if extra_minor:
            follow = (extra_minor > 0) == (payment.state == "succeeded")
            return Finding("refund_differs", FOLLOW if follow else TELL)
    return None


def _judge_other_capture(seen: Seen, payment: Payment) -> Finding | None:
    """Compare a capture that we know nothing of."""
    if seen.refunded_minor >= seen.captured_minor:
        return None  # Somebody has given it back.
    if payment.state in ("failed", "voided"):
        return Finding(LATE_CAPTURE, FOLLOW)
    return Finding("captured_elsewhere", SWEEP if payment.state in UNRESOLVED else TELL)


@dataclass(frozen=True, slots=True)
class Books:
    """Where our side of the ledger is, and who hears of findings: kind, order and intent."""

    database: Database
    history: History
    publish: Callable[[Commit], object]
    jobs: "Jobs[Payment, Reply]"
    finding: Callable[[str, str, str], None]


@dataclass(slots=True)
class Reconciled:
    """What a comparison came to; nothing before `watermark` (unix seconds) is left open.

    `after` is the last intent of those that the gateway lists, newest first, that it has come to.
    """

    watermark: int
    batch_no: int
    after: str = ""
    compared: int = 0
    findings: int = 0
    intents: set[str] = field(default_factory=set)

    @property
    def explained_ratio(self) -> float:
        """The part of what was compared that both sides agree on; 1.0 when there was nothing."""
        return 1.0 - self.findings / self.compared if self.compared else 1.0


async def reconcile(
    gateway: Gateway, books: Books, turn: Turn, gently: Callable[[], Awaitable[None]]
) -> Reconciled:
    """Compare everything since the last turn, both ways, pausing by `gently` between calls.

    Safe to repeat, also by several at once. Raises `Unavailable` when it could not finish: the
    turn then goes on from the page it had come to.
    """
    open_from = turn.now if turn.open_from is None else turn.open_from
    done = Reconciled(open_from, turn.batch_no, turn.after)
    comparison = _Comparison(gateway, books, turn, done)
    async for page in gateway.intents(max(0, turn.watermark - LOOK_BACK_S), turn.after):
        await comparison.compare(page)
        done.after = page[-1].intent_id if page else done.after
        await comparison.note()
        await gently()
    async for payment in comparison.settled():
        if payment.intent_id is not None and payment.intent_id not in comparison.done.intents:
            await comparison.look(payment, payment.intent_id)
            await gently()
    return comparison.done


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One turn's worth of comparing."""

    gateway: Gateway
    books: Books
    turn: Turn
    done: Reconciled

    async def compare(self, page: Sequence[Seen]) -> None:
        """Compare intents with our rows, and repair what is safe to."""
        named = [(seen, seen.order_id) for seen in page if seen.order_id is not None]
        async with self.books.database.acquire() as connection:
            rows = await Store(connection).find({order_id for _, order_id in named})
        for seen, order_id in named:
            self.done.compared += 1
            self.done.intents.add(seen.intent_id)
            # What is nobody's here may stay open for ever: it must not hold all turns to come.
            if seen.is_open and order_id in rows:
                self.done.watermark = min(self.done.watermark, seen.created)
            found = judge(seen, rows.get(order_id), self.turn.now - seen.created)
            if found is not None and await self._deal_with(found, seen, order_id):
                self._tell(found.kind, order_id, seen.intent_id)

    async def note(self) -> None:
        """Keep the turn, and how far it has come."""
        done = self.done
        async with self.books.database.acquire() as connection:
            store = ReconcilerStore(connection)
            await store.advance(done.after, done.watermark, done.batch_no, TURN_S_MAX)

    async def settled(self) -> AsyncIterator[Payment]:
        """Read our rows that have settled since the last turn."""
        at = (self.turn.batch_no - BATCHES_AGAIN, 0)
        while True:
            async with self.books.database.acquire() as connection:
                told = await ReconcilerStore(connection).told_after(at, ROWS_MAX)
                rows = await Store(connection).find({order_id for _, order_id in told})
            if not told:
                return
            at = told[-1][0]
            for payment in rows.values():
                if payment.state in ("succeeded", "refunded"):
                    yield payment
            self.done.batch_no = max(self.done.batch_no, at[0])
            await self.note()

    async def look(self, payment: Payment, intent_id: str) -> None:
        """Compare a row whose intent the gateway has not listed."""
        seen = (await self.gateway.look(intent_id)).seen
        if seen is not None:
            await self.compare([seen])
            return
        self.done.intents.add(intent_id)
        self.done.compared += 1
        self._tell(UNKNOWN_INTENT, payment.order_id, intent_id)

    def _tell(self, kind: str, order_id: str, intent_id: str) -> None:
        self.done.findings += 1
        self.books.finding(kind, order_id, intent_id)

    async def _deal_with(self, found: Finding, seen: Seen, order_id: str) -> bool:
        """Repair what was found; False when it is something else by now."""
        if found.repair == CANCEL:
            try:
                reply = await self.gateway.cancel(seen.intent_id, self.turn.now)
            except BreakerOpen:
                raise
            except Unavailable:  # One that will not be cancelled must not end every turn here.
                self._tell(ORPHAN_OPEN, order_id, seen.intent_id)
                return False
            return not isinstance(reply, Succeeded)
        return found.repair == TELL or await self._write_down(found, seen, order_id)

    async def _write_down(self, found: Finding, seen: Seen, order_id: str) -> bool:
        """Take in what the gateway shows, in terms of the table."""
        commit: Commit | None = None
        async with self.books.database.transaction() as connection:
            transaction, store = Transaction(connection), Store(connection)
            # Jobs are locked before rows, as settling does.
            await self.books.jobs.lock(connection, [order_id])
            payment = (await store.lock([order_id]))[order_id]
            if judge(seen, payment, 0) != found:
                return False
            after, fact = replace(payment, recovering=True), None
            if found.repair == FOLLOW:
                after, fact = learn(payment, Found(seen))
            await store.move([after])
            if fact is not None:
                facts = [(fact, cause_of(after))]
                commit = await self.books.history.record(connection, facts)
            if goes_on(after):
                await self.books.jobs.hasten(transaction, [order_id])
        for then in transaction.after_commit:
            then()
        if commit is not None:
            self.books.publish(commit)
        return True
