"""The service's own decisions, one at a time; each is made once by its code and remembered."""

import types
from collections.abc import Coroutine, Generator, Mapping
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

from msgspec.structs import replace

from ironcart.events import OrderCancellationRequested, StockReserved, minor_units, money
from ironcart.services.payments import handlers
from ironcart.services.payments.fold import fold_one
from ironcart.services.payments.gateway import Found, Gateway, Reply
from ironcart.services.payments.gateway.charges import KEY_USED_S, REQUEST_LIFE_S, _seen
from ironcart.services.payments.gateway.client import Client, Object
from ironcart.services.payments.handlers import refunds
from ironcart.services.payments.handlers.charging import Told, goes_on
from ironcart.services.payments.handlers.reconcile import FOLLOW, SWEEP, judge
from ironcart.services.payments.handlers.table import UNRESOLVED
from ironcart.services.payments.handlers.take import _Batch
from ironcart.services.payments.store import Payment
from ironcart.toolkit.history import Recorded
from ironcart.toolkit.http import Problem
from ironcart.toolkit.outcomes import Done, Fact, Unavailable
from ironcart.toolkit.recovery import OwnFact
from ironcart.toolkit.resilience import Breaker
from models.interned import Interned
from models.messages import ORDER, TRACE, message
from models.payments.stripe_side import Answer, Intent, Request, said, worded

CURRENCY = "EUR"
AMOUNT = Decimal("0.02")
AMOUNT_MINOR = minor_units(AMOUNT, CURRENCY)
RESERVATION, CANCELLATION = "StockReserved", "OrderCancellationRequested"
EVENTS = {
    RESERVATION: StockReserved(ORDER, "C-1", AMOUNT, CURRENCY, ()),
    CANCELLATION: OrderCancellationRequested(ORDER, "customer", "customer"),
}
REFUND, WEBHOOK = "a refund is asked for", "a webhook"
REFUND_ID, REFUND_MINOR = "refund-1", 1
ENDED = frozenset({"succeeded", "failed", "voided", "refunded"})
METHOD = "pm_card_visa"
NOBODY = Told(lambda *_: None, lambda *_: None)
UNHEARD_OF = 0


class Call(NamedTuple):
    """A job in somebody's hands: what it was leased with, and the answers it has had."""

    row: int
    attempts: int
    days: int
    heard: tuple[Answer, ...] = ()


class Decided(NamedTuple):
    """What became of the row, by number, and the facts that say so."""

    row: int
    facts: tuple[Fact, ...] = ()


class Bug(NamedTuple):
    """The code raised what nobody expects; its job would be tried again, for ever."""

    text: str


@types.coroutine
def _hand_over(request: Request) -> Generator[Request, dict[str, Any], dict[str, Any]]:
    return (yield request)


class CutOff(Client):
    """The service's connection to Stripe, cut: each request goes to whoever drives the call."""

    def __init__(self) -> None:
        pass

    async def _call(self, method: str, path: str, **params: Any) -> Object:
        key = params.pop("idempotency_key", None)
        return await _hand_over(Request(method, path, key, _frozen(params)))


def cut_off(gateway: type[Gateway] = Gateway) -> Gateway:
    """The service's gateway, or a variant of it, without a network."""
    made = gateway("", "", Breaker("model"))
    made._client = CutOff()
    return made


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple((key, _frozen(value[key])) for key in sorted(value))
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


class Service:
    """What payments decides. A variant that drops a rule overrides a method, or the gateway."""

    def __init__(self, gateway: type[Gateway] = Gateway) -> None:
        self.gateway = gateway
        self.rows: Interned[Payment | None] = Interned(None)
        self.calls: Interned[Call] = Interned()
        self.decide = cache(self._decide)
        self.next = cache(self._next)
        self.settle = cache(self._settle)
        self.reconcile = cache(self._reconcile)

    def state(self, row: int) -> str:
        """Where the payment stands."""
        payment = self.rows[row]
        return "none" if payment is None else payment.state

    def has_job(self, row: int) -> bool:
        """Whether there is something to do at the gateway."""
        payment = self.rows[row]
        return payment is not None and goes_on(payment)

    def lease(self, row: int, attempts: int, days: int) -> int:
        """The number of a call that begins, `days` after a refund was asked for."""
        payment = self.rows[row]
        refunds_part = payment is not None and payment.refund_id is not None
        return self.calls.number(Call(row, attempts, days if refunds_part else 0))

    def hear(self, call: int, answer: Answer) -> int:
        """The number of a call that has had one answer more."""
        before = self.calls[call]
        return self.calls.number(before._replace(heard=(*before.heard, answer)))

    def step(self, payment: Payment, event: Any) -> tuple[Payment, Fact | None]:
        """Move a payment on, as the service's table says."""
        return handlers.step(payment, event)

    def learn(self, payment: Payment, reply: Reply) -> tuple[Payment, Fact | None]:
        """Take an answer of the gateway in."""
        return handlers.learn(payment, reply)

    def deliver(
        self, payment: Payment | None, event: Any, *, held: bool, recovering: bool
    ) -> Decided:
        """Deal with one message; `held` says that somebody works on the job."""
        known = {} if payment is None else {ORDER: payment}
        batch = _Batch(known, {ORDER} if held else set(), CURRENCY, METHOD, recovering)
        outcome = batch.deal_with(message(event))
        assert isinstance(outcome, Done)
        return Decided(self.rows.number(batch.known.get(ORDER)), outcome.emit)

    def ask_refund(self, payment: Payment) -> Payment | None:
        """What an operator's request to give a part back leads to; None when it is refused."""
        units = refunds.allow(payment, money(REFUND_MINOR, CURRENCY))
        if isinstance(units, Problem):
            return None
        return self.step(payment, handlers.OperatorRefundAsked(REFUND_ID, units))[0]

    def look(self, payment: Payment) -> Payment:
        """What a webhook, or the reconciler, makes of a payment that has ended."""
        return replace(payment, looking=True)

    def restore(self, row: int, told: tuple[Fact, ...]) -> int:
        """What recovery makes of a row of an old database, given what was told since."""
        payment = self.rows[row]
        for fact in told:
            payment = self.fold(payment, fact)
        return self.rows.number(None if payment is None else self.mark(payment))

    def fold(self, payment: Payment | None, fact: Fact) -> Payment | None:
        """Write down what was told: it is true, whatever the row says."""
        envelope = message(fact.data).envelope
        recorded = Recorded(UUID(int=1), ORDER, fact.version, envelope.type, "s", TRACE, b"")
        return fold_one(payment, OwnFact(ORDER, fact.version, fact.data, envelope, recorded, 1))

    def mark(self, payment: Payment) -> Payment:
        """Have the gateway looked at before anything is sent."""
        return replace(payment, recovering=payment.recovering or payment.state in UNRESOLVED)

    def _reconcile(self, row: int, number: int, intent: Intent) -> Decided | None:
        """What the reconciler repairs in our own ledger; None when it finds nothing to."""
        payment = self.rows[row]
        seen = _seen(worded(number, intent, ORDER))
        found = judge(seen, payment, 0)
        if payment is None or found is None or found.repair not in (FOLLOW, SWEEP):
            return None
        if found.repair == SWEEP:
            return Decided(self.rows.number(replace(payment, recovering=True)))
        return self._taken_in(payment, Found(seen))

    def _taken_in(self, payment: Payment, reply: Reply) -> Decided:
        after, fact = self.learn(payment, reply)
        return Decided(self.rows.number(after), () if fact is None else (fact,))

    def _decide(self, row: int, event: str, held: bool, recovering: bool) -> Decided:
        payment = self.rows[row]
        if event in EVENTS:
            return self.deliver(payment, EVENTS[event], held=held, recovering=recovering)
        if payment is None:
            return Decided(row)
        if event == REFUND:
            return Decided(self.rows.number(self.ask_refund(payment) or payment))
        news = payment.state in ENDED
        return Decided(self.rows.number(self.look(payment)) if news else row)

    def _settle(self, row: int, reply: Reply) -> Decided:
        payment = self.rows[row]
        assert payment is not None
        return self._taken_in(payment, reply)

    def _next(self, call: int) -> Request | Reply | Bug | None:
        """What a call does next: asks, knows the answer, or (None) gives up until later."""
        row, attempts, days, heard = self.calls[call]
        payment = self.rows[row]
        assert payment is not None
        # As long after the last boundary as the service may ask of any request.
        asked_s = days * KEY_USED_S + REQUEST_LIFE_S
        work = handlers.Charging(cut_off(self.gateway), NOBODY)
        running = work.call(replace(payment, refund_asked_s=asked_s), attempts)
        try:
            return _resume(running, heard)
        finally:
            running.close()


def _resume(
    running: Coroutine[Request, Any, Reply], heard: tuple[Answer, ...]
) -> Request | Reply | Bug | None:
    """Run a call from its beginning, with the answers that it has had so far."""
    try:
        request = running.send(None)
        for answer in heard:
            told = said(answer, ORDER)
            request = running.throw(told) if isinstance(told, Exception) else running.send(told)
    except StopIteration as stop:
        reply: Reply = stop.value
        return reply
    except Unavailable:
        return None
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        return Bug(f"{type(error).__name__}: {error}")
    return request
