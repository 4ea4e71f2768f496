"""The keys of an OIDC issuer, fetched beside the requests: now and then, and when one is unknown.

While the issuer is away its last keys stay in force, for `KEPT_S_MAX`.
"""

import asyncio
import ipaddress
import math
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import msgspec
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey

from ironcart.toolkit.outcomes import Refused

DISCOVERY: Final = "/.well-known/openid-configuration"
REFRESH_EVERY_S: Final = 300.0
# A key nobody knows may be a new one, or made up: it is looked for this often at most.
FETCH_EVERY_S_MIN: Final = 10.0
KEPT_S_MAX: Final = 86_400.0
FETCH_TIMEOUT_S: Final = 5.0
DOCUMENT_BYTES_MAX: Final = 256 * 1024
KEYS_MAX: Final = 64
RSA_BITS_MIN: Final = 2_048
BASE64_BITS: Final = 6

PublicKey = RSAKey | ECKey | OKPKey


class CannotFetch(Exception):
    """The issuer's documents could not be had; the text says why."""


class Issuer:
    """Keeps the public keys of one issuer; nothing is fetched before `watch` runs.

    Without `jwks_url` the issuer's discovery document says where its keys are. Raises `Refused`
    for addresses that are neither https nor on this machine.
    """

    def __init__(self, url: str, jwks_url: str = "") -> None:
        self.url, self._jwks_url = url, jwks_url
        for each in filter(None, (url, jwks_url)):
            if not is_safe(each):
                raise Refused(f"OIDC: {each} is not https: use an https address")
        self._keys: Mapping[str, PublicKey] = {}
        self._said = ""
        self._fetched_at = self._tried_at = -math.inf
        self._wanted, self._settled = asyncio.Event(), asyncio.Event()
        # Counts the sets of keys there have been: what was judged by another one is judged again.
        self.generation = 0

    @property
    def away(self) -> bool:
        """Whether there are no keys to judge by."""
        return time.monotonic() - self._fetched_at > KEPT_S_MAX

    def find(self, kid: str | None) -> PublicKey | None:
        """The key of this id; a token that names none means the only key there is."""
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    def ask(self) -> bool:
        """Have the keys fetched again; False when that was done a moment ago."""
        if not self._wanted.is_set():
            if time.monotonic() - self._tried_at < FETCH_EVERY_S_MIN:
                return False
            self._want()
        return True

    def _want(self) -> None:
        self._settled.clear()
        self._wanted.set()

    async def settled(self) -> None:
        """Wait until the keys that were asked for are here, or cannot be had."""
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                await self._settled.wait()
        except TimeoutError:
            return

    async def watch(self) -> None:
        """Fetch for ever."""
        while True:
            await self._fetch()
            pause_s = FETCH_EVERY_S_MIN if self._said else REFRESH_EVERY_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def _fetch(self) -> None:
        self._want()
        said = ""
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                self._take(await self._read_keys())
        except (CannotFetch, aiohttp.ClientError, TimeoutError, OSError) as error:
            said = str(error) or type(error).__name__
        if said and said != self._said:
            structlog.get_logger().error("The issuer's keys cannot be fetched", error=said)
        self._said = said
        self._tried_at = time.monotonic()
        self._wanted.clear()
        self._settled.set()

    def _take(self, keys: Mapping[str, PublicKey]) -> None:
        if not keys:
            raise CannotFetch("the issuer has no key that tokens are verified with")
        before = {kid: key.thumbprint() for kid, key in self._keys.items()}
        if before != {kid: key.thumbprint() for kid, key in keys.items()}:
            self.generation += 1
        self._keys, self._fetched_at = keys, time.monotonic()

    async def _read_keys(self) -> Mapping[str, PublicKey]:
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            url = self._jwks_url or await self._discover(session)
            found = await _document(session, url)
        listed = found.get("keys")
        if not isinstance(listed, list):
            raise CannotFetch(f"{url} is not a JSON Web Key Set")
        return public_keys(listed[:KEYS_MAX])

    async def _discover(self, session: aiohttp.ClientSession) -> str:
        where = self.url.rstrip("/") + DISCOVERY
        found = await _document(session, where)
        url = found.get("jwks_uri")
        if found.get("issuer") != self.url:
            raise CannotFetch(f"{where} is about another issuer")
        if not isinstance(url, str) or not is_safe(url):
            raise CannotFetch(f"{where} names no https jwks_uri")
        return url


def is_safe(url: str) -> bool:
    """Whether what is fetched from here can be trusted to be from there."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host)
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
    return parts.scheme == "http" and local


def public_keys(listed: list[Any]) -> Mapping[str, PublicKey]:
    """Read public keys to verify with, by id; what is something else is left out."""
    found: dict[str, PublicKey] = {}
    for each in listed:
        if not isinstance(each, dict) or each.get("use", "sig") != "sig" or "d" in each:
            continue
        if each.get("kty") == "RSA" and len(str(each.get("n"))) * BASE64_BITS < RSA_BITS_MIN:
            continue
        try:
            key = JWKRegistry.import_key(each)
        except (JoseError, UnsupportedAlgorithm, ValueError, TypeError, KeyError):
            continue
        if isinstance(key, RSAKey | ECKey | OKPKey):
            found[str(each.get("kid", ""))] = key
    return found


async def _document(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url, allow_redirects=False) as answer:
        if answer.status != 200:
            raise CannotFetch(f"{url} answers {answer.status}")
        text = b""
        while chunk := await answer.content.read(DOCUMENT_BYTES_MAX):
            text += chunk
            if len(text) > DOCUMENT_BYTES_MAX:
                raise CannotFetch(f"{url} has more than {DOCUMENT_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CannotFetch(f"{url} is not a JSON object") from error
