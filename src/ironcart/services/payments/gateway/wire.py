"""A POST to Stripe as its SDK would send it, and the SDK's own reading of an answer; no network."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote_plus

import stripe

from ironcart.services.payments.gateway.connections import Answer

KEY_HEADER = "Idempotency-Key"
NOTHING: Answer = (200, b"{}", {})
ANYWHERE = "/v1"


class _Offline(stripe.HTTPClient):
    """Sends nothing: keeps what was to be sent, and answers with what it is told."""

    name = "aiohttp"  # It is among the headers; this is what they go through.

    def __init__(self) -> None:
        super().__init__()
        self.answer = NOTHING
        self.url, self.headers = "", dict[str, str]()

    def request_with_retries(
        self, method: str, url: str, headers: Mapping[str, str], *_: Any, **__: Any
    ) -> tuple[Any, int, Mapping[str, str]]:
        """Take what was to be sent down, and give the answer that we have."""
        del method
        self.url, self.headers = url, dict(headers)
        status, body, answer_headers = self.answer
        return body, status, answer_headers


class Wire:
    """What the SDK knows, without its cost for each call: `base`, `headers`, what errors mean."""

    def __init__(self, api_key: str, base_addresses: Any) -> None:
        self._offline = _Offline()
        self._client = stripe.StripeClient(
            api_key,
            base_addresses=base_addresses,
            max_network_retries=0,
            http_client=self._offline,
        )
        self.read(NOTHING)
        self.base = self._offline.url.removesuffix(ANYWHERE)
        self._headers = self._offline.headers

    def headers(self, key: str) -> dict[str, str]:
        """The headers of a POST under this idempotency key, in the SDK's order."""
        return {**self._headers, KEY_HEADER: key}

    def read(self, answer: Answer) -> Any:
        """Have the SDK read an answer that we have: returns the object, or raises `StripeError`.

        It is the answer to the one request that was sent: no second one is needed to read it, which
        could be lost although the first answer was definite.
        """
        self._offline.answer = answer
        return self._client.raw_request("post", ANYWHERE).data


def form(params: Mapping[str, Any]) -> bytes:
    """Encode parameters as the SDK does, brackets as they are; names are plain words."""
    return "&".join(_fields(params.items())).encode()


def _fields(params: Iterable[tuple[str, Any]]) -> Iterator[str]:
    for name, value in params:
        if isinstance(value, dict):
            yield from _fields((f"{name}[{key}]", each) for key, each in value.items())
        elif isinstance(value, list):
            yield from _fields((f"{name}[{index}]", each) for index, each in enumerate(value))
        else:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            yield f"{name}={quote_plus(text, safe='[]')}"
