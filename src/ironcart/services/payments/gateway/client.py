"""One call to Stripe: an answer, an error that is one, or `Unavailable`.

Reads go through Stripe's own SDK. What every order needs, a POST, is sent as the SDK would send it
and read by ourselves when it succeeded; every other answer to it is read by the SDK.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import cached_property
from typing import Any

import aiohttp
import msgspec
import stripe
from stripe import _api_requestor

from ironcart.services.payments.gateway.connections import Connections
from ironcart.services.payments.gateway.wire import Wire, form
from ironcart.toolkit.outcomes import Refused, Unavailable
from ironcart.toolkit.resilience import Breaker

CALL_TIMEOUT_S = 10.0
CONNECTIONS_MAX = 128
PAGE_ITEMS = 100
NOT_FOUND = 404
SUCCESS = range(200, 300)

Object = Mapping[str, Any]
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_SILENCE = (
    *(stripe.StripeError, TimeoutError, aiohttp.ClientError, OSError),
    *(msgspec.DecodeError, UnicodeDecodeError),
)


def _unheard(*_: Any, **__: Any) -> None:
    """Log nothing."""


# Off: it puts facts about this machine into every request, and costs a tenth of each call.
stripe.enable_telemetry = False
# It also formats four lines of its own log for each call, whether anybody listens or not: a sixth
# of the SDK's time. What it would say of an error is in the error.
vars(_api_requestor).update(log_info=_unheard, log_debug=_unheard)


class StoredFailure(Exception):
    """The gateway keeps a failure under this idempotency key: it will never say anything else."""


class _Connections(stripe.HTTPClient):
    """What the SDK sends its requests through: once each, since repeating is for jobs to decide."""

    name = "aiohttp"

    def __init__(self, session: aiohttp.ClientSession) -> None:
        super().__init__()
        self._session = session

    async def request_with_retries_async(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        post_data: Any = None,
        *_: Any,
        **__: Any,
    ) -> tuple[Any, int, Mapping[str, str]]:
        """Send one request and read the whole answer."""
        async with self._session.request(
            method, url, headers=headers, data=post_data, allow_redirects=False
        ) as answer:
            return await answer.read(), answer.status, answer.headers


class _Opened:
    """What there is once a loop runs: connections, the SDK on them, and the SDK's wire."""

    def __init__(self, api_key: str, api_base: str) -> None:
        addresses: Any = {"api": api_base} if api_base else {}
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
            timeout=aiohttp.ClientTimeout(total=None),  # Each call has its own.
        )
        self.sdk = stripe.StripeClient(
            api_key,
            base_addresses=addresses,
            max_network_retries=0,
            http_client=_Connections(self.session),
        )
        self.wire = Wire(api_key, addresses)
        self.posts = Connections(self.wire.base)


class Client:
    """The connections to Stripe, behind a breaker."""

    def __init__(self, api_key: str, api_base: str, breaker: Breaker) -> None:
        self._api_key, self._api_base, self._breaker = api_key, api_base, breaker

    @cached_property
    def _opened(self) -> _Opened:
        return _Opened(self._api_key, self._api_base)

    async def close(self) -> None:
        """Close the kept connections."""
        if "_opened" in vars(self):
            self._opened.posts.close()
            await self._opened.session.close()

    async def get(self, path: str, **params: Any) -> Object | None:
        """Read one object; None when there is none."""
        try:
            return await self._call("get", path, **params)
        except stripe.InvalidRequestError as error:
            if error.http_status == NOT_FOUND:
                return None
            raise Unavailable(f"Stripe refuses to be asked: {error.code}") from error
        except StoredFailure as error:
            raise Unavailable(str(error)) from error

    async def post(self, path: str, key: str, **params: Any) -> Object:
        """Ask for a change; what is refused raises Stripe's `InvalidRequestError` or `CardError`.

        Raises `StoredFailure` when the key is used up, and nothing was done now.
        """
        return await self._call("post", path, idempotency_key=key, **params)

    async def pages(self, path: str, after: str = "", **params: Any) -> AsyncIterator[list[Any]]:
        """Read a list, newest first, in pages, beginning below the object `after`."""
        more = True
        while more:
            from_there = {"starting_after": after} if after else {}
            answer = await self.get(path, limit=PAGE_ITEMS, **from_there, **params)
            if answer is None:
                raise Unavailable(f"Stripe has no {path}")
            items: list[Any] = answer["data"]
            more = bool(answer["has_more"]) and bool(items)
            after = items[-1]["id"] if items else after
            yield items

    async def _call(self, method: str, path: str, **params: Any) -> Object:
        """Make one call; an outcome that is not known is `Unavailable`, never a failure."""
        with self._breaker.guard():
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    if method == "post":
                        return await self._send(path, **params)
                    answer: Any = await self._opened.sdk.raw_request_async(method, path, **params)
            except stripe.AuthenticationError as error:
                raise Refused("Stripe refuses IRONCART_STRIPE_API_KEY: set another") from error
            except stripe.RateLimitError as error:
                raise Unavailable("Stripe asks us to slow down", retry_after_s=1.0) from error
            except (stripe.InvalidRequestError, stripe.CardError):
                raise
            except _SILENCE as error:
                headers: Any = getattr(error, "headers", None) or {}
                if headers.get("idempotent-replayed") == "true":
                    raise StoredFailure("Stripe keeps a failure under this key") from error
                raise Unavailable(f"Stripe: {type(error).__name__}") from error
        data: Object = answer.data
        return data

    async def _send(self, path: str, *, idempotency_key: str, **params: Any) -> Object:
        """Send one POST, once; an answer that is no success is read by the SDK."""
        opened = self._opened
        headers = opened.wire.headers(idempotency_key)
        answer = await opened.posts.post(path, headers, form(params))
        status, body, _ = answer
        data: Object = _decode(body) if status in SUCCESS else opened.wire.read(answer)
        return data
