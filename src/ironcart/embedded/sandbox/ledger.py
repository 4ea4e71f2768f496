"""The ledger: all intents and refunds, and the only ways in which they change.
Pure: no I/O, clock or randomness of its own. This is the judge of "charged once".
"""

from collections.abc import Callable
from typing import NoReturn

from msgspec.structs import replace

from ironcart.embedded.sandbox.cards import AUTHENTICATION_REQUIRED
from ironcart.embedded.sandbox.records import (
    OPEN,
    Attempt,
    Change,
    Decline,
    Draft,
    Failure,
    Intent,
    Issuer,
    NewId,
    Refund,
    Refused,
    refuse,
)


class LedgerBrokenError(AssertionError):
    """A change would move money twice or rewrite history; it is never applied."""


class Ledger:
    """All intents and refunds. The asking methods compute a Change; only `admit` changes state."""

    def __init__(self, new_id: NewId) -> None:
        self._new_id = new_id
        self._intents: dict[str, Intent] = {}
        self._intent_order: list[str] = []
        self._refunds: dict[str, Refund] = {}
        self._refund_order: list[str] = []

    def intents(self) -> list[Intent]:
        """Every intent, oldest first."""
        return list(self._intents.values())

    def intent(self, intent_id: str) -> Intent:
        """The intent; Refused with 404 when there is none."""
        found = self._intents.get(intent_id)
        if found is None:
            refuse(404, f"No such payment_intent: '{intent_id}'", "resource_missing", "intent")
        return found

    def refund(self, refund_id: str) -> Refund:
        """The refund; Refused with 404 when there is none."""
        found = self._refunds.get(refund_id)
        if found is None:
            refuse(404, f"No such refund: '{refund_id}'", "resource_missing", "id")
        return found

    def page_of_intents(
        self, limit: int, after: str | None, created_from: int = 0
    ) -> tuple[list[Intent], bool]:
        """Up to `limit` intents older than `after`, newest first, and whether there are more.

        Only those created at `created_from` (unix seconds) or later.
        """
        end = len(self._intent_order)
        if after is not None:
            start = self._intents.get(after)
            if start is None:
                _no_such_cursor("payment_intent", after)
            end = start.seq
        page: list[Intent] = []
        for seq in range(end - 1, -1, -1):
            intent = self._intents[self._intent_order[seq]]
            if intent.created >= created_from:
                if len(page) == limit:
                    return page, True
                page.append(intent)
        return page, False

    def page_of_refunds(
        self, intent_id: str | None, limit: int, after: str | None
    ) -> tuple[list[Refund], bool]:
        """Up to `limit` refunds (of one intent) older than `after`, newest first; more of them?"""
        end = len(self._refund_order)
        if after is not None:
            start = self._refunds.get(after)
            if start is None:
                _no_such_cursor("refund", after)
            end = start.seq
        page: list[Refund] = []
        for refund_id in reversed(self._refund_order[:end]):
            refund = self._refunds[refund_id]
            if intent_id is None or refund.intent_id == intent_id:
                if len(page) == limit:
                    return page, True
                page.append(refund)
        return page, False

    def create(self, draft: Draft, at: float, issuer: Issuer) -> Change:
        """A new intent, confirmed at once when the draft says so."""
        intent = Intent(
            id=self._new_id("pi"),
            seq=len(self._intent_order),
            amount=draft.amount,
            currency=draft.currency,
            created=int(at),
            status="requires_confirmation" if draft.payment_method else "requires_payment_method",
            payment_method=draft.payment_method,
            metadata=draft.metadata,
            description=draft.description,
        )
        if draft.attempt is None:
            return Change(at, intent)
        if draft.payment_method is None:
            raise Refused(_missing_payment_method())
        return _attempt(intent, draft.payment_method, draft.attempt, issuer, at)

    def confirm(self, intent_id: str, attempt: Attempt, at: float, issuer: Issuer) -> Change:
        """Ask the issuer for the money, once: a succeeded or canceled intent is an error."""
        intent = self.intent(intent_id)
        if intent.status not in OPEN:
            why = (
                "it has already succeeded after being previously confirmed."
                if intent.status == "succeeded"
                else f"it has a status of {intent.status}. Only a PaymentIntent with one of the "
                "following statuses may be confirmed: requires_confirmation, requires_action."
            )
            return _unexpected_state(
                intent, f"You cannot confirm this PaymentIntent because {why}", at
            )
        payment_method = attempt.payment_method or intent.payment_method
        if payment_method is None:
            return Change(at, intent, failure=_missing_payment_method())
        return _attempt(intent, payment_method, attempt, issuer, at)

    def cancel(self, intent_id: str, reason: str | None, at: float) -> Change:
        """Close an intent that has taken no money; afterwards it can take none."""
        intent = self.intent(intent_id)
        if intent.status not in OPEN:
            return _unexpected_state(
                intent,
                "You cannot cancel this PaymentIntent because it has a status of "
                f"{intent.status}. Only a PaymentIntent with one of the following statuses may be "
                "canceled: requires_payment_method, requires_capture, requires_confirmation, "
                "requires_action, processing.",
                at,
            )
        canceled = replace(
            intent, status="canceled", canceled_at=int(at), cancellation_reason=reason
        )
        return Change(at, canceled)

    def give_back(
        self,
        intent_id: str,
        amount: int | None,
        at: float,
        *,
        reason: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> Change:
        """Refund `amount` minor units, or all that is left; never more than was captured."""
        intent = self._intents.get(intent_id)
        if intent is None:
            no_such = f"No such payment_intent: '{intent_id}'"
            refuse(404, no_such, "resource_missing", "payment_intent")
        if intent.charge_id is None or not intent.captured:
            message = (
                f"This PaymentIntent ({intent_id}) does not have a successful charge to refund."
            )
            return _unexpected_state(intent, message, at)
        left = intent.captured - intent.refunded
        if left == 0:
            message = f"Charge {intent.charge_id} has already been refunded."
            return Change(at, intent, failure=_invalid(message, "charge_already_refunded"))
        if amount is not None and amount > left:
            message = (
                f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})"
            )
            return Change(at, intent, failure=_invalid(message, "amount_too_large", "amount"))
        refund = Refund(
            id=self._new_id("re"),
            seq=len(self._refund_order),
            intent_id=intent_id,
            charge_id=intent.charge_id,
            amount=left if amount is None else amount,
            currency=intent.currency,
            created=int(at),
            reason=reason,
            metadata=metadata or {},
        )
        return Change(at, replace(intent, refunded=intent.refunded + refund.amount), refund)

    def _check(self, change: Change) -> None:
        after, refund = change.intent, change.refund
        if after is None:
            _hold(refund is None, "a refund without its intent")
            return
        before = self._intents.get(after.id)
        if before is None:
            _hold(after.seq == len(self._intent_order), "an intent out of order")
            _hold(refund is None, "a refund on a new intent")
            before = replace(after, status="requires_confirmation", captured=0, refunded=0)
        same = (before.amount, before.currency, before.created, before.seq)
        _hold(
            same == (after.amount, after.currency, after.created, after.seq), "a rewritten intent"
        )
        _hold(before.status in OPEN or before.status == after.status, "a final status that moved")
        _hold(after.captured == (after.amount if after.status == "succeeded" else 0), "a capture")
        _hold(before.captured in (0, after.captured), "a capture taken back")
        _hold(before.status in OPEN or before.attempts == after.attempts, "a second charge")
        given_back = refund.amount if refund else 0
        _hold(after.refunded == before.refunded + given_back, "a refund that does not add up")
        _hold(0 <= after.refunded <= after.captured, "more refunded than captured")
        if refund is not None:
            _hold(refund.amount >= 1 and refund.intent_id == after.id, "a refund of nothing")
            _hold(refund.seq == len(self._refund_order), "a refund out of order")
            _hold(refund.id not in self._refunds, "the same refund twice")

    def admit(self, change: Change, write: Callable[[Change], None] | None = None) -> None:
        """Check a change, have it written, make it true: in this order, and none without the other.

        LedgerBrokenError when it does not follow from the present state or would move money twice.
        """
        self._check(change)
        if write is not None:
            write(change)
        intent, refund = change.intent, change.refund
        if intent is not None:
            if intent.id not in self._intents:
                self._intent_order.append(intent.id)
            self._intents[intent.id] = intent
        if refund is not None:
            self._refund_order.append(refund.id)
            self._refunds[refund.id] = refund


def _attempt(
    intent: Intent, payment_method: str, attempt: Attempt, issuer: Issuer, at: float
) -> Change:
    verdict = issuer(payment_method)
    if verdict.kind == "needs_action":
        if not attempt.no_action:
            waiting = replace(
                intent, status="requires_action", payment_method=payment_method, decline=None
            )
            return Change(at, waiting)
        verdict = AUTHENTICATION_REQUIRED
    attempts = intent.attempts + 1
    if verdict.kind == "declined":
        declined = replace(
            intent,
            status="requires_payment_method",
            payment_method=None,
            attempts=attempts,
            decline=Decline(verdict.code, verdict.decline_code, verdict.message, payment_method),
        )
        failure = Failure(
            402, "card_error", verdict.message, verdict.code, decline_code=verdict.decline_code
        )
        return Change(at, declined, failure=failure)
    paid = replace(
        intent,
        status="succeeded",
        payment_method=payment_method,
        attempts=attempts,
        captured=intent.amount,
        decline=None,
    )
    return Change(at, paid)


def _invalid(message: str, code: str, param: str | None = None) -> Failure:
    return Failure(400, "invalid_request_error", message, code, param)


def _unexpected_state(intent: Intent, message: str, at: float) -> Change:
    return Change(at, intent, failure=_invalid(message, "payment_intent_unexpected_state"))


def _missing_payment_method() -> Failure:
    return _invalid(
        "You cannot confirm this PaymentIntent because it's missing a payment method. "
        "Send payment_method with the confirmation.",
        "payment_intent_unexpected_state",
    )


def _no_such_cursor(kind: str, cursor: str) -> NoReturn:
    refuse(400, f"No such {kind}: '{cursor}'", "resource_missing", "starting_after")


def _hold(holds: bool, broken: str) -> None:
    if not holds:
        raise LedgerBrokenError(f"the ledger refuses {broken}")
