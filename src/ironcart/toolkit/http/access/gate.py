"""The gate of a service: who a request is from, whether it may come in, and how many of them."""

import asyncio
import ipaddress
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client import Counter

from ironcart.toolkit.http.access.apikeys import PREFIX, KeyRing
from ironcart.toolkit.http.access.buckets import BURST_S, Bucket, Buckets
from ironcart.toolkit.http.access.callers import (
    ANONYMOUS,
    STRANGER,
    BadToken,
    Caller,
    Scope,
    UnknownKey,
)
from ironcart.toolkit.http.problems import Problem, retry_after

if TYPE_CHECKING:
    from ironcart.toolkit.http.access.issuer import Issuer
    from ironcart.toolkit.http.access.tokens import Tokens

LOOK_EVERY_S: Final = 1.0
# Callers by token, each with a bucket.
TOKEN_CALLERS_MAX: Final = 10_000
# Failures of one address (of one /64 in IPv6): beyond these it is told to wait, if it fails again.
FAILURES_PER_S: Final = 10.0
FAILURES_BURST: Final = 100
ADDRESSES_MAX: Final = 10_000
IPV6_PREFIX_BITS: Final = 64
AUTHORIZATION: Final = b"authorization"
CHALLENGE: Final = 'Bearer realm="ironcart"'

refused = Counter(
    "ironcart_access_refused_total", "requests refused for who they are from", ["reason"]
)

Headers = Sequence[tuple[bytes, bytes]]


class Ticket(Protocol):
    """The leave to come in that a door gives."""

    def leave(self) -> None:
        """Be no longer counted as inside; may be called again."""


def _always() -> bool:
    return True


@dataclass(slots=True)
class Pass:
    """A request that is let in: whose it is, what is left to its caller, and what its door gave.

    `good` says whether it would be let in still.
    """

    caller: Caller
    bucket: Bucket | None = None
    good: Callable[[], bool] = _always
    ticket: Ticket | None = None


OFF: Final = Pass(ANONYMOUS)
OPEN: Final = Pass(STRANGER)


def lacking(caller: Caller, needed: Scope | None) -> Problem | None:
    """Say that a caller may not do this; None when it may."""
    if caller.may(needed):
        return None
    if caller is STRANGER:
        return _unknown("missing", "send an API key or a token, as Authorization: Bearer", "")
    refused.labels("scope").inc()
    challenge = f'{CHALLENGE}, error="insufficient_scope", scope="{needed}"'
    said = f"this needs the scope {needed}"
    return Problem(403, said, headers={"WWW-Authenticate": challenge})


class Gate:
    """Judges who calls by the keys of a file, by the tokens of an issuer, or by either.

    `rate_per_s` is for keys that name none and for every caller with a token; at once they may ask
    `BURST_S` seconds' worth.
    """

    def __init__(
        self,
        ring: KeyRing | None,
        issuer: "Issuer | None" = None,
        tokens: "Tokens | None" = None,
        *,
        rate_per_s: float,
    ) -> None:
        self._ring, self._issuer, self._tokens = ring, issuer, tokens
        burst = max(1, round(rate_per_s * BURST_S))
        self._callers = Buckets(rate_per_s, burst, TOKEN_CALLERS_MAX)
        self._failures = Buckets(FAILURES_PER_S, FAILURES_BURST, ADDRESSES_MAX)

    @classmethod
    def built(
        cls, keys_file: str, issuer: str, audience: str, jwks_url: str, *, rate_per_s: float
    ) -> "Gate":
        """Make a gate as settings say it; raises `Refused` with what to change."""
        ring = KeyRing(Path(keys_file), rate_per_s) if keys_file else None
        if not issuer:
            return cls(ring, rate_per_s=rate_per_s)
        # Whoever has no issuer does not pay for its libraries.
        from ironcart.toolkit.http.access.issuer import Issuer
        from ironcart.toolkit.http.access.tokens import Tokens

        keys = Issuer(issuer, jwks_url)
        return cls(ring, keys, Tokens(keys, audience), rate_per_s=rate_per_s)

    def judge(self, headers: Headers, address: str, *, last: bool = False) -> Pass | Problem | None:
        """Let a request in, or say why not.

        None: that is not known yet; ask again once `settled`, for the `last` time.
        """
        given = [value for name, value in headers if name == AUTHORIZATION]
        if len(given) > 1:
            return self._failed(address, "malformed", "send one Authorization header")
        scheme, _, credential = given[0].partition(b" ") if given else (b"", b"", b"")
        credential = credential.strip(b" ")
        if scheme.lower() != b"bearer" or not credential:
            said = "send an API key or a token, as Authorization: Bearer"
            return self._failed(address, "missing", said)
        if credential.startswith(PREFIX):
            found: Pass | Problem | None = self._by_key(credential, address)
        else:
            found = self._by_token(credential, address, last)
        if not isinstance(found, Pass):
            return found
        assert found.bucket is not None
        wait_s = found.bucket.take(time.monotonic())
        if not wait_s:
            return found
        refused.labels("rate").inc()
        limits = {k.decode(): v.decode() for k, v in found.bucket.headers()}
        said = f"more than {found.bucket.rate_per_s:g} requests a second: come back later"
        return Problem(429, said, headers=retry_after(wait_s) | limits)

    def _by_key(self, credential: bytes, address: str) -> Pass | Problem:
        ring = self._ring
        key = ring.find(credential) if ring is not None else None
        if ring is None or key is None:
            return self._failed(address, "unknown", "the API key is not known, or not any more")
        if key.expired():
            return self._failed(address, "expired", "the API key has expired")
        return Pass(key.caller, key.bucket, lambda: ring.has(key))

    def _by_token(self, credential: bytes, address: str, last: bool) -> Pass | Problem | None:
        tokens, issuer = self._tokens, self._issuer
        if tokens is None or issuer is None:
            return self._failed(address, "unknown", "this is no API key, and tokens are not taken")
        try:
            caller = tokens.read(credential)
        except UnknownKey as error:
            if not last and issuer.ask():
                return None
            if issuer.away:
                refused.labels("issuer").inc()
                said = "tokens cannot be judged now: their issuer does not answer"
                return Problem(503, said, headers=retry_after(1.0))
            return self._failed(address, "token", str(error))
        except BadToken as error:
            return self._failed(address, "token", str(error))
        return Pass(caller, self._callers.of(caller.id), lambda: tokens.good(credential))

    def _failed(self, address: str, reason: str, said: str) -> Problem:
        wait_s = self._failures.of(_place(address)).take(time.monotonic())
        if wait_s:
            refused.labels("failures").inc()
            said = f"too many requests from {address} that could not be let in; the last: {said}"
            return Problem(429, said, headers=retry_after(wait_s))
        if reason == "malformed":
            refused.labels(reason).inc()
            challenge = f'{CHALLENGE}, error="invalid_request"'
            return Problem(400, said, headers={"WWW-Authenticate": challenge})
        return _unknown(reason, said, "" if reason == "missing" else ', error="invalid_token"')

    async def settled(self) -> None:
        """Wait, for some seconds at most, until what was unknown is known."""
        if self._issuer is not None:
            await self._issuer.settled()

    async def watch(self) -> None:
        """Keep keys up to date, for ever."""
        async with asyncio.TaskGroup() as group:
            if self._issuer is not None:
                group.create_task(self._issuer.watch())
            while self._ring is not None:
                await asyncio.sleep(LOOK_EVERY_S)
                await asyncio.to_thread(self._ring.look)


def _unknown(reason: str, said: str, error: str) -> Problem:
    refused.labels(reason).inc()
    return Problem(401, said, headers={"WWW-Authenticate": CHALLENGE + error})


def _place(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    if ip.ipv4_mapped is not None:  # Whoever listens at :: sees IPv4 so.
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, IPV6_PREFIX_BITS), strict=False))
