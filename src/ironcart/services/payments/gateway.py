"""Stripe, through its own SDK: every answer becomes a reply, every silence `Unavailable`.

Money moves only when an intent whose id we have stored is confirmed, and an intent can succeed only
once: repeating any of these calls cannot charge twice, whatever became of idempotency keys.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import stripe

from ironcart.toolkit.outcomes import Refused, Unavailable
from ironcart.toolkit.resilience import Breaker

CALL_TIMEOUT_S = 10.0
CONNECTIONS_MAX = 128
KEY_CALLS_MAX = 3
OF_THE_ORDER = ("payment_method", "amount", "currency")
REFUNDS_LISTED_MAX = 100
REFUND_GOING = ("succeeded", "pending")
DECLINED_WITHOUT_CODE = "declined"
NEEDS_ACTION = "authentication_required"


@dataclass(frozen=True, slots=True)
class Created:
    """An intent exists; no money can move until it is confirmed."""

    intent_id: str


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The money moved."""


@dataclass(frozen=True, slots=True)
class Declined:
    """The card said no; the intent could still be confirmed by somebody, so cancel it."""

    code: str


@dataclass(frozen=True, slots=True)
class Canceled:
    """The intent can never move money."""


@dataclass(frozen=True, slots=True)
class Refunded:
    """The money is on its way back, all of it."""


Reply = Created | Succeeded | Declined | Canceled | Refunded


class Gateway:
    """One client for all calls; `create`, `confirm`, `cancel` and `refund` may be repeated."""

    def __init__(self, api_key: str, api_base: str, breaker: Breaker) -> None:
        self._api_key, self._api_base, self._breaker = api_key, api_base, breaker
        self._opened: stripe.StripeClient | None = None
        self._session: aiohttp.ClientSession | None = None

    @property
    def _client(self) -> stripe.StripeClient:
        if self._opened is None:  # aiohttp wants a running loop.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
            )
            self._opened = stripe.StripeClient(
                self._api_key,
                base_addresses={"api": self._api_base} if self._api_base else {},
                max_network_retries=0,
                http_client=stripe.AIOHTTPClient(timeout=CALL_TIMEOUT_S, session=self._session),
            )
        return self._opened

    async def close(self) -> None:
        """Close the kept connections."""
        if self._session is not None:
            await self._session.close()

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
                "/v1/payment_intents",
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
                f"/v1/payment_intents/{intent_id}/confirm",
                f"confirm:{intent_id}:{attempts}",
                off_session=True,
            )
        except stripe.CardError as error:
            return Declined(_decline_code(error))
        except stripe.InvalidRequestError:
            intent = await self._look_up(intent_id)
        return _reply(intent)

    async def cancel(self, intent_id: str, attempts: int) -> Reply:
        """Close the door; finds out when the money had moved before."""
        try:
            intent = await self._post(
                f"/v1/payment_intents/{intent_id}/cancel", f"cancel:{intent_id}:{attempts}"
            )
        except stripe.InvalidRequestError:
            intent = await self._look_up(intent_id)
        reply = _reply(intent)
        if isinstance(reply, Declined):  # Neither canceled nor succeeded: it is still open.
            raise Unavailable(f"intent {intent_id} would not be cancelled")
        return reply

    async def refund(self, intent_id: str, amount_minor: int, attempts: int) -> Reply:
        """Give the money of an intent back, whole; looks before every repeat."""
        if attempts and await self._refunded_minor(intent_id) >= amount_minor:
            return Refunded()
        try:
            key = f"refund:{intent_id}:{attempts}"
            refund = await self._post("/v1/refunds", key, payment_intent=intent_id)
        except stripe.InvalidRequestError as error:
            if await self._refunded_minor(intent_id) < amount_minor:
                raise Unavailable(f"the refund was refused: {error.code}") from error
        else:
            if refund["status"] not in REFUND_GOING:
                raise Unavailable(f"the refund is {refund['status']}")
        return Refunded()

    async def _refunded_minor(self, intent_id: str) -> int:
        listed = await self._call(
            "get", "/v1/refunds", payment_intent=intent_id, limit=REFUNDS_LISTED_MAX
        )
        return sum(each["amount"] for each in listed["data"] if each["status"] in REFUND_GOING)

    async def _look_up(self, intent_id: str) -> Mapping[str, Any]:
        return await self._call("get", f"/v1/payment_intents/{intent_id}")

    async def _post(self, path: str, key: str, **params: Any) -> Mapping[str, Any]:
        return await self._call("post", path, idempotency_key=key, **params)

    async def _call(self, method: str, path: str, **params: Any) -> Mapping[str, Any]:
        """Make one call; an outcome that is not known is `Unavailable`, never a failure."""
        with self._breaker.guard():
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    answer: Any = await self._client.raw_request_async(method, path, **params)
            except stripe.AuthenticationError as error:
                raise Refused("Stripe refuses IRONCART_STRIPE_API_KEY: set another") from error
            except stripe.RateLimitError as error:
                raise Unavailable("Stripe asks us to slow down", retry_after_s=1.0) from error
            except (stripe.InvalidRequestError, stripe.CardError):
                raise
            except (stripe.StripeError, TimeoutError, aiohttp.ClientError, OSError) as error:
                raise Unavailable(f"Stripe: {type(error).__name__}") from error
        data: Mapping[str, Any] = answer.data
        return data


def _reply(intent: Mapping[str, Any]) -> Reply:
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


def _decline_code(error: stripe.CardError) -> str:
    details = getattr(error, "error", None)
    code = getattr(details, "decline_code", None) or error.code
    return str(code or DECLINED_WITHOUT_CODE)
