"""The work of payments: one call to the gateway for each step of a payment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from ironcart.services.payments.gateway import (
    Canceled,
    Found,
    Gateway,
    OperatorRefunded,
    Reply,
    Swept,
)
from ironcart.services.payments.handlers.table import JOBS, UNRESOLVED, learn
from ironcart.services.payments.store import Payment, Store
from ironcart.toolkit.database import Connection
from ironcart.toolkit.history import Cause
from ironcart.toolkit.jobs import Settled
from ironcart.toolkit.outcomes import Fact, Unavailable
from ironcart.toolkit.resilience import Backoff
from ironcart.toolkit.telemetry import context

# Before an intent that somebody else cancelled is made again, in case they go on cancelling.
PAUSE = Backoff(attempts_max=2**31, first_s=0.5, max_s=60.0)
LATE_CAPTURE = "late_capture"
REFUND_REFUSED = "refund_refused"
REFUND_FAILED = "refund_failed"
UNKNOWN_INTENT = "unknown_intent"


@dataclass(frozen=True, slots=True)
class Told:
    """Who hears of what came of a call, once that is written for good.

    `processed` gets the payment and its age in seconds; `finding` gets what a person should look
    at: its kind, the order and the intent.
    """

    processed: Callable[[Payment, float], None]
    finding: Callable[[str, str, str], None]


def cause_of(payment: Payment) -> Cause:
    """What the consequences of a payment carry on."""
    traceparent, _, state = payment.traceparent.partition(" ")
    inside = context({"traceparent": traceparent, "tracestate": state}, payment.trace_id)
    return Cause(payment.trace_id, inside, payment.causation_id)


@dataclass(frozen=True, slots=True)
class Charging:
    """One job for each payment that is open, or that the gateway has news about."""

    gateway: Gateway
    told: Told

    async def load(self, connection: Connection, keys: Sequence[str]) -> Mapping[str, Payment]:
        """Read the payments whose jobs are due."""
        found = await Store(connection).find(keys)
        return {key: payment for key, payment in found.items() if goes_on(payment)}

    async def call(self, payload: Payment, attempts: int) -> Reply:
        """Tell the gateway what the state asks for."""
        intent_id = payload.intent_id
        if payload.state in UNRESOLVED:
            if payload.recovering:
                return await self.gateway.sweep(
                    payload.order_id, intent_id, since_s=payload.changed_s, attempts=attempts
                )
            return await self._charge_or_close(payload, attempts)
        assert intent_id is not None
        match payload.state:
            case "refunding":
                assert payload.amount_minor
                again = payload.refunding_minor is not None
                return await self.gateway.refund(
                    intent_id, payload.amount_minor, attempts, again=again
                )
            case "op_refunding" | "op_then_refund":
                assert payload.refund_id
                assert payload.refunding_minor
                return await self.gateway.refund_part(
                    intent_id, payload.refund_id, payload.refunding_minor, payload.refund_asked_s
                )
        return await self.gateway.look(intent_id)

    async def _charge_or_close(self, payload: Payment, attempts: int) -> Reply:
        intent_id, charging = payload.intent_id, payload.state == "charging"
        if intent_id is None:
            # Nothing to cancel, or nothing to confirm yet.
            return await self._create(payload, attempts) if charging else Canceled()
        if charging:
            return await self.gateway.confirm(intent_id, attempts)
        return await self.gateway.cancel(intent_id, attempts)

    async def _create(self, payload: Payment, attempts: int) -> Reply:
        if payload.generation and not attempts:
            raise Unavailable(
                "somebody cancelled the intent of this order", PAUSE.delay_s(payload.generation)
            )
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

    async def settle(
        self, connection: Connection, results: Sequence[tuple[Payment, Reply]]
    ) -> Sequence[Settled[Payment]]:
        """Write down what the gateway said; a row that moved on meanwhile decides what it means."""
        store = Store(connection)
        rows = await store.lock({payment.order_id for payment, _ in results})
        learnt = [take_in(rows[payment.order_id], payment, reply) for payment, reply in results]
        moved = [after for after, _ in learnt if after != rows[after.order_id]]
        ages_s = dict(await store.move(moved)) if moved else {}
        settled: list[Settled[Payment]] = []
        for (after, fact), (_, reply) in zip(learnt, results, strict=True):
            facts = () if fact is None else (fact,)
            again = after if goes_on(after) else None
            age_s = ages_s.get(after.order_id, 0.0)
            then = partial(self._tell, rows[after.order_id], after, reply, age_s)
            settled.append(Settled(facts, cause_of(after), again, then))
        return settled

    def _tell(self, before: Payment, after: Payment, reply: Reply, age_s: float) -> None:
        self.told.processed(after, age_s)
        intent_id = after.intent_id or ""
        if before.state in ("failed", "voided") and after.state == "refunding":
            self.told.finding(LATE_CAPTURE, after.order_id, intent_id)
        if before.state == "refunded" and after.state == "refunding":
            self.told.finding(REFUND_FAILED, after.order_id, intent_id)
        if isinstance(reply, OperatorRefunded) and reply.refused:
            self.told.finding(REFUND_REFUSED, after.order_id, intent_id)
        if isinstance(reply, Found) and reply.seen is None:
            self.told.finding(UNKNOWN_INTENT, after.order_id, intent_id)


def take_in(row: Payment, asked: Payment, reply: Reply) -> tuple[Payment, Fact | None]:
    """Learn an answer to what was `asked`; one about another intent than the row's is no answer.

    Then the database has lost what it knew, and the gateway has to be looked at before any send.
    """
    if row.intent_id == asked.intent_id or isinstance(reply, Swept):
        return learn(row, reply)
    if row.state not in UNRESOLVED:
        return row, None
    return replace(row, recovering=True, changed_s=0.0), None


def goes_on(payment: Payment) -> bool:
    """Whether there is anything left to ask the gateway about a payment."""
    return payment.state in JOBS or (payment.looking and payment.intent_id is not None)
