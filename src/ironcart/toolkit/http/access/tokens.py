"""Bearer tokens of an OIDC issuer: judged by pinned algorithms, issuer, audience and time."""

import hashlib
import time
from typing import Any, Final

from joserfc import jws, jwt
from joserfc.errors import ExpiredTokenError, JoseError

from ironcart.toolkit.http.access.callers import BadToken, Caller, Scope, UnknownKey
from ironcart.toolkit.http.access.issuer import Issuer, PublicKey

# By public key only: whoever can verify cannot sign.
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "ES256", "ES384", "Ed25519")
TOKEN_BYTES_MAX: Final = 8 * 1024
SUBJECT_CHARACTERS_MAX: Final = 255
TIME_S_MAX: Final = 2**53
# By how much the issuer's clock and ours may differ.
LEEWAY_S: Final = 30
# Tokens that have been judged and are remembered as hashes.
REMEMBERED_MAX: Final = 10_000
SCOPES: Final = {f"ironcart:{scope}": scope for scope in (Scope.STOREFRONT, Scope.OPERATOR)}


class Tokens:
    """Judges tokens of one issuer for one audience."""

    def __init__(self, issuer: Issuer, audience: str) -> None:
        self._issuer = issuer
        self._claims = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_S,
            iss={"essential": True, "value": issuer.url},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        self._known: dict[bytes, tuple[Caller, float]] = {}
        self._generation = 0

    def read(self, token: bytes) -> Caller:
        """Say whose token this is.

        Raises `BadToken`, and `UnknownKey` where the issuer's newest keys may help.
        """
        generation = self._issuer.generation
        if generation != self._generation:
            self._known, self._generation = {}, generation
        name = hashlib.sha256(token).digest()
        # What was judged by keys that are too old by now is judged again: nobody can.
        found = None if self._issuer.away else self._known.get(name)
        if found is None:
            found = self._judged(token)
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            self._known[name] = found
        caller, until_s = found
        if time.time() >= until_s:
            raise BadToken("the token has expired")
        return caller

    def good(self, token: bytes) -> bool:
        """Whether a token that was good before is good still."""
        try:
            self.read(token)
        except BadToken:
            return False
        return True

    def _judged(self, token: bytes) -> tuple[Caller, float]:
        if len(token) > TOKEN_BYTES_MAX:
            raise BadToken(f"a token has at most {TOKEN_BYTES_MAX} bytes")
        try:
            header = jws.extract_compact(token).headers()
            if header.get("alg") not in ALGORITHMS:
                raise BadToken("the token is not signed by an algorithm that is taken here")
            claims = self._verified(token, self._key(header.get("kid")))
        except ExpiredTokenError as error:
            raise BadToken("the token has expired") from error
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            raise BadToken("the token is not a good one of this issuer and audience") from error
        return self._caller(claims), _end_of(claims)

    def _key(self, kid: Any) -> PublicKey:
        found = self._issuer.find(kid) if kid is None or isinstance(kid, str) else None
        if found is None or self._issuer.away:
            raise UnknownKey("the token is signed with a key that the issuer does not have")
        return found

    def _verified(self, token: bytes, key: PublicKey) -> dict[str, Any]:
        claims = jwt.decode(token, key, algorithms=list(ALGORITHMS)).claims
        self._claims.validate(claims)
        return claims

    def _caller(self, claims: dict[str, Any]) -> Caller:
        subject = claims["sub"]
        if not isinstance(subject, str) or not 1 <= len(subject) <= SUBJECT_CHARACTERS_MAX:
            raise BadToken("the token's subject is not a text of 1 to 255 characters")
        # A subject may be a person's name or address, and callers are told in events.
        digest = hashlib.sha256(
            f"{self._issuer.url}\n{subject}".encode(errors="surrogatepass")
        ).hexdigest()
        said = claims.get("scope", "")
        granted = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
        scopes = {SCOPES.get(each) for each in granted if isinstance(each, str)}
        scope = next((each for each in (Scope.OPERATOR, Scope.STOREFRONT) if each in scopes), None)
        return Caller(f"oidc:{digest[:32]}", scope)


def _end_of(claims: dict[str, Any]) -> float:
    end = claims["exp"]
    # What is no number is not above 0 either; an integer may be too large for a float.
    if not isinstance(end, int | float) or not 0 < end < TIME_S_MAX:
        raise BadToken("the token's end is not a time")
    return float(end) + LEEWAY_S
