"""The money of orders at Stripe: every answer becomes a reply, every silence `Unavailable`.

Money moves only when an intent whose id we have stored is confirmed, and an intent can succeed only
once: repeating any of these calls cannot charge twice, whatever became of idempotency keys.
"""

from collections.abc import AsyncIterator
from typing import Any

import stripe

from ironcart.services.payments.gateway.client import Client, Object, StoredFailure
from ironcart.services.payments.gateway.replies import (
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
from ironcart.services.payments.gateway.scan import Scan
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.resilience import Breaker

KEY_CALLS_MAX = 3
# Stripe keeps a key for a day; a request may be this long under way.
KEY_USED_S = 23 * 3_600.0
REQUEST_LIFE_S = 600.0
REFUND_KEYS_MAX = 3
OF_THE_ORDER = ("payment_method", "amount", "currency")
REFUND_GOING = ("succeeded", "pending", "requires_action")
REFUND_IMPOSSIBLE = ("charge_already_refunded", "amount_too_large", "charge_disputed")
DECLINED_WITHOUT_CODE = "declined"
NEEDS_ACTION = "authentication_required"
INTENTS = "/v1/payment_intents"
REFUNDS = "/v1/refunds"


class Gateway:
    """One client for all calls; each of them may be repeated."""

    def __init__(self, api_key: str, api_base: str, breaker: Breaker) -> None:
        self._client = Client(api_key, api_base, breaker)
        self._scan = Scan(self.intents)
        self.forget = self._scan.forget
        self.close = self._client.close

    async def create(
        self,
        *,
        order_id: str,
        amount_minor: int,
        currency: str,
        method: str,
        generation: int,
        attempts: int,
    ) -> Reply:
        """Create the intent of an order; an early repeat gives the same intent while keys live.

        A key is left behind after `KEY_CALLS_MAX` calls: the gateway may have stored a failure
        under it. An intent whose id is lost to us is never confirmed, so it is harmless.
        """
        try:
            intent = await self._post(
                INTENTS,
                f"create:{order_id}:{generation}:{attempts // KEY_CALLS_MAX}",
                amount=amount_minor,
                currency=currency.lower(),
                payment_method=method,
                payment_method_types=["card"],
                metadata={"order_id": order_id},
            )
        except stripe.CardError as error:
            return Declined(_decline_code(error))
        except stripe.InvalidRequestError as error:
            if error.param not in OF_THE_ORDER:
                raise Unavailable(f"Stripe refuses our request: {error.code}") from error
            # The order's own data is refused: an answer, and nothing is there to be cancelled.
            return Declined(error.code or DECLINED_WITHOUT_CODE)
        return Created(intent["id"])

    async def confirm(self, intent_id: str, attempts: int) -> Reply:
        """Move the money of an intent; once it has moved, every repeat says so."""
        try:
            intent = await self._post(
                f"{INTENTS}/{intent_id}/confirm",
                f"confirm:{intent_id}:{attempts}",
                off_session=True,
            )
        except stripe.CardError as error:
            return Declined(_decline_code(error))
        except stripe.InvalidRequestError:
            intent = await self._stands(intent_id)
        return _reply(_about(intent, intent_id))

    async def cancel(self, intent_id: str, attempts: int) -> Reply:
        """Close the door; finds out when the money had moved before."""
        try:
            intent = await self._post(
                f"{INTENTS}/{intent_id}/cancel", f"cancel:{intent_id}:{attempts}"
            )
        except stripe.InvalidRequestError:
            intent = await self._stands(intent_id)
        reply = _reply(_about(intent, intent_id))
        if isinstance(reply, Declined):  # Neither canceled nor succeeded: it is still open.
            raise Unavailable(f"intent {intent_id} would not be cancelled")
        return reply

    async def refund(
        self, intent_id: str, amount_minor: int, attempts: int, *, again: bool = False
    ) -> Reply:
        """Give the money of an intent back, all that is left of it; looks before every repeat.

        No amount is sent, so that a repeat finds nothing left whatever became of its key. `again`:
        an earlier one was accepted and has failed since; the gateway may still keep that answer.
        """
        key = f"refund:{intent_id}:rest:{attempts}"
        if (attempts or again) and await self._refunded_minor(intent_id) >= amount_minor:
            return Refunded()
        if again:
            key = f"refund:{intent_id}:again:{await self._refunds_over(intent_id)}:{attempts}"
        try:
            refund = await self._post(REFUNDS, key, payment_intent=intent_id)
        except stripe.InvalidRequestError as error:
            if await self._refunded_minor(intent_id) < amount_minor:
                raise Unavailable(f"the refund was refused: {error.code}") from error
        else:
            if refund["status"] not in REFUND_GOING:
                raise Unavailable(f"the refund is {refund['status']}")
        return Refunded()

    async def refund_part(
        self, intent_id: str, refund_id: str, amount_minor: int, asked_s: float
    ) -> Reply:
        """Give an exact amount back, once for each `refund_id`, asked for `asked_s` seconds ago.

        Looks for the refund by its id before every send. All sends of a day share a key, and after
        that nothing is sent until a request of the day before cannot be under way any more.
        """
        day, since_s = divmod(asked_s, KEY_USED_S)
        for number in range(REFUND_KEYS_MAX):
            known, total_minor = await self._find_refund(intent_id, refund_id)
            if known is not None:
                return _refund_over(known, total_minor)
            if day and since_s < REQUEST_LIFE_S:
                raise Unavailable("a request may be under way", REQUEST_LIFE_S - since_s)
            try:
                refund = await self._client.post(
                    REFUNDS,
                    f"refund:{intent_id}:{refund_id}:{day:.0f}.{number}",
                    payment_intent=intent_id,
                    amount=amount_minor,
                    metadata={"refund_id": refund_id},
                )
            except StoredFailure:
                continue  # That request is over: look what came of it, then take another key.
            except stripe.InvalidRequestError as error:
                known, total_minor = await self._find_refund(intent_id, refund_id)
                if known is not None:
                    return _refund_over(known, total_minor)
                if error.code in REFUND_IMPOSSIBLE:
                    return OperatorRefunded(total_minor, error.code)
                raise Unavailable(f"the refund was refused: {error.code}") from error
            else:
                going = refund["status"] in REFUND_GOING
                return _refund_over(refund, total_minor + (amount_minor if going else 0))
        raise Unavailable("Stripe keeps failures under every key of this refund")

    async def look(self, intent_id: str) -> Found:
        """Look where an intent stands."""
        intent = await self._client.get(f"{INTENTS}/{intent_id}", expand=["latest_charge"])
        return Found(None if intent is None else _seen(intent))

    async def intents(self, created_from: int = 0, after: str = "") -> AsyncIterator[list[Seen]]:
        """Read all intents created since `created_from` (unix seconds), newest first, in pages."""
        pages = self._client.pages(
            INTENTS, after, created={"gte": created_from}, expand=["data.latest_charge"]
        )
        async for page in pages:
            yield [_seen(intent) for intent in page]

    async def sweep(
        self, order_id: str, intent_id: str | None, *, since_s: float, attempts: int
    ) -> Reply:
        """Close every intent of an order, and find the one that took money, if one has.

        For an order whose intents we may have forgotten: for the last `since_s` seconds, nothing
        has been created for it.
        """
        found = {seen.intent_id: seen for seen in await self._scan.of(order_id, since_s)}
        if intent_id is not None and intent_id not in found:
            known = (await self.look(intent_id)).seen
            if known is not None:
                found[intent_id] = known
        captured = [seen for seen in found.values() if seen.captured_minor]
        for seen in found.values():
            if seen.is_open and isinstance(await self.cancel(seen.intent_id, attempts), Succeeded):
                again = (await self.look(seen.intent_id)).seen
                captured += [again] if again is not None else []
        return Swept(captured[0] if captured else None, len(found))

    async def _stands(self, intent_id: str) -> Object:
        intent = await self._client.get(f"{INTENTS}/{intent_id}")
        if intent is None:
            raise Unavailable(f"Stripe does not know intent {intent_id}")
        return intent

    async def _find_refund(self, intent_id: str, refund_id: str) -> tuple[Object | None, int]:
        known, total_minor = None, 0
        async for page in self._client.pages(REFUNDS, payment_intent=intent_id):
            for refund in page:
                if refund["status"] in REFUND_GOING:
                    total_minor += refund["amount"]
                if (refund.get("metadata") or {}).get("refund_id") == refund_id:
                    known = refund
        return known, total_minor

    async def _refunded_minor(self, intent_id: str) -> int:
        return (await self._find_refund(intent_id, ""))[1]

    async def _refunds_over(self, intent_id: str) -> int:
        """Count the refunds that came to nothing."""
        pages = self._client.pages(REFUNDS, payment_intent=intent_id)
        return sum(
            [refund["status"] not in REFUND_GOING async for page in pages for refund in page]
        )

    async def _post(self, path: str, key: str, **params: Any) -> Object:
        try:
            return await self._client.post(path, key, **params)
        except StoredFailure as error:
            raise Unavailable(str(error)) from error


def _about(intent: Object, intent_id: str) -> Object:
    """The intent, if it is the one that was asked for: an answer gone astray counts for nothing."""
    if intent["id"] != intent_id:
        raise Unavailable(f"Stripe was asked about {intent_id} and answers about another intent")
    return intent


def _reply(intent: Object) -> Reply:
    """Read where an intent stands; one that would need the customer counts as declined."""
    match intent["status"]:
        case "succeeded":
            return Succeeded()
        case "canceled":
            return Canceled()
        case "processing":
            raise Unavailable("the gateway is still at it", retry_after_s=1.0)
        case "requires_action":
            return Declined(NEEDS_ACTION)
    last = intent.get("last_payment_error") or {}
    return Declined(last.get("decline_code") or last.get("code") or DECLINED_WITHOUT_CODE)


def _refund_over(refund: Object, total_minor: int) -> OperatorRefunded:
    status = refund["status"]
    return OperatorRefunded(total_minor, None if status in REFUND_GOING else status)


def _seen(intent: Object) -> Seen:
    charge = intent.get("latest_charge")
    refunded = charge.get("amount_refunded", 0) if isinstance(charge, dict) else 0
    captured = intent["status"] == "succeeded"
    return Seen(
        intent["id"],
        (intent.get("metadata") or {}).get("order_id"),
        intent["status"],
        intent["amount"],
        intent["amount_received"] if captured else 0,
        refunded,
        intent["currency"].upper(),
        str(intent.get("payment_method") or "unknown"),
        intent["created"],
    )


def _decline_code(error: stripe.CardError) -> str:
    details = getattr(error, "error", None)
    code = getattr(details, "decline_code", None) or error.code
    return str(code or DECLINED_WITHOUT_CODE)
