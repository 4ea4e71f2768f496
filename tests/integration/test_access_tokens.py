"""Tokens of an OIDC issuer, over real HTTP: what is taken, what is refused, and new keys."""

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from ironcart.toolkit.http import Problem, Scope
from ironcart.toolkit.http.access import Gate, Pass, issuer
from ironcart.toolkit.http.access.tokens import LEEWAY_S, TOKEN_BYTES_MAX
from ironcart.toolkit.outcomes import Refused

AUDIENCE = "ironcart"
PATIENCE_S = 10.0
Key = RSAKey | ECKey | OKPKey


def rsa(kid: str) -> RSAKey:
    return RSAKey.generate_key(2_048, {"kid": kid})


OLD, NEW, STRANGERS = rsa("old"), rsa("new"), rsa("old")


class Site:
    """An issuer: its documents over HTTP, and tokens signed by whichever key."""

    def __init__(self) -> None:
        self.keys: list[Any] = [OLD.as_dict(private=False)]
        self.url = ""
        self.away = False
        self.asked = 0
        self.discovery: dict[str, Any] = {}

    async def discover(self, _: web.Request) -> web.Response:
        found = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        return web.json_response(found | self.discovery)

    async def show_keys(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.away:
            raise web.HTTPServiceUnavailable
        return web.json_response({"keys": self.keys})

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        found = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "someone@shop.example",
            "exp": now + 600,
            "scope": "openid ironcart:storefront",
        }
        return {name: value for name, value in (found | changes).items() if value is not None}

    def token(self, key: Key = OLD, alg: str = "RS256", **changes: Any) -> str:
        header = {"alg": alg, "kid": key.kid}
        return jwt.encode(header, self.claims(**changes), key, algorithms=[alg])


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    found = Site()
    app = web.Application()
    app.router.add_get(issuer.DISCOVERY, found.discover)
    app.router.add_get("/keys", found.show_keys)
    runner = web.AppRunner(app)
    await runner.setup()
    listening = web.TCPSite(runner, "127.0.0.1", 0)
    await listening.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


@pytest.fixture
async def gate(site: Site) -> AsyncIterator[Gate]:
    found = Gate.built("", site.url, AUDIENCE, "", rate_per_s=1_000)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(found.watch())
        yield found
        watching.cancel()


async def judged(gate: Gate, token: str) -> Pass | Problem:
    """As the app does it: what is not known yet is asked again."""
    headers = [(b"authorization", b"Bearer " + token.encode())]
    found = gate.judge(headers, "192.0.2.1")
    if found is None:
        await gate.settled()
        found = gate.judge(headers, "192.0.2.1", last=True)
    assert found is not None
    return found


async def refusal(gate: Gate, token: str) -> str:
    found = await judged(gate, token)
    assert isinstance(found, Problem), found
    assert found.status == 401
    assert 'error="invalid_token"' in found.headers["WWW-Authenticate"]
    assert token not in found.detail + str(found.headers)
    return found.detail


async def let_in(gate: Gate, token: str) -> Pass:
    found = await judged(gate, token)
    assert isinstance(found, Pass), found
    return found


async def test_a_good_token_is_a_caller_who_is_not_named_after_a_person(
    gate: Gate, site: Site
) -> None:
    shop = (await let_in(gate, site.token())).caller
    other = (await let_in(gate, site.token(sub="another"))).caller
    again = (await let_in(gate, site.token(exp=int(time.time()) + 60))).caller

    assert shop.scope is Scope.STOREFRONT
    assert shop == again
    assert shop.id != other.id
    assert shop.id.startswith("oidc:")
    assert "someone" not in shop.id
    operator = site.token(scope="ironcart:storefront ironcart:operator")
    assert (await let_in(gate, operator)).caller.scope is Scope.OPERATOR
    assert (await let_in(gate, site.token(scope="openid"))).caller.scope is None
    assert (await let_in(gate, site.token(aud=["others", AUDIENCE]))).caller == shop


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        (ECKey.generate_key("P-256", {"kid": "ec"}), "ES256"),
        (OKPKey.generate_key("Ed25519", {"kid": "ed"}), "Ed25519"),
        (rsa("pss"), "PS256"),
    ],
)
async def test_other_public_key_algorithms_are_taken(
    gate: Gate, site: Site, key: Key, alg: str
) -> None:
    site.keys.append(key.as_dict(private=False))

    await let_in(gate, site.token(key, alg))


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def packed(part: dict[str, Any]) -> str:
    return base64url(json.dumps(part).encode())


def unsigned(site: Site) -> str:
    return packed({"alg": "none", "typ": "JWT"}) + "." + packed(site.claims()) + "."


def signed_with_the_public_key(site: Site) -> str:
    signed = packed({"alg": "HS256", "kid": OLD.kid}) + "." + packed(site.claims())
    public = OLD.as_pem(private=False)
    return f"{signed}.{base64url(hmac.digest(public, signed.encode(), 'sha256'))}"


def tampered(site: Site) -> str:
    header, _, signature = site.token().split(".")
    return f"{header}.{packed(site.claims(scope='ironcart:operator'))}.{signature}"


def past(s: float) -> int:
    return int(time.time() - s)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (unsigned, "algorithm"),
        (signed_with_the_public_key, "algorithm"),
        (tampered, "not a good one"),
        (lambda site: site.token(STRANGERS), "not a good one"),
        (lambda site: site.token(aud="others"), "not a good one"),
        (lambda site: site.token(aud=None), "not a good one"),
        (lambda site: site.token(iss="http://elsewhere.example"), "not a good one"),
        (lambda site: site.token(iss=None), "not a good one"),
        (lambda site: site.token(exp=past(LEEWAY_S + 2)), "expired"),
        (lambda site: site.token(exp=None), "not a good one"),
        (lambda site: site.token(exp=float("nan")), "not a good one"),
        (lambda site: site.token(nbf=past(-LEEWAY_S - 60)), "not a good one"),
        (lambda site: site.token(sub=None), "not a good one"),
        (lambda site: site.token(sub=""), "not a good one"),
        (lambda site: site.token(sub="x" * 300), "subject"),
        (lambda site: site.token(pad="x" * TOKEN_BYTES_MAX), "at most"),
        (lambda site: site.token(rsa("unheard-of")), "does not have"),
        (lambda _: "a.b.c", "not a good one"),
        (lambda _: "....", "not a good one"),
        (lambda _: "\xff.\xff.\xff", "not a good one"),
    ],
)
async def test_a_token_that_is_not_good_is_refused_in_words_that_give_nothing_away(
    gate: Gate, site: Site, made: Callable[[Site], str], said: str
) -> None:
    await let_in(gate, site.token())

    assert said in await refusal(gate, made(site))


async def test_a_clock_that_is_a_little_off_does_no_harm(gate: Gate, site: Site) -> None:
    await let_in(gate, site.token(exp=past(2)))
    await let_in(gate, site.token(nbf=past(-5)))


async def test_a_new_key_is_taken_at_its_first_token_and_a_withdrawn_one_no_more(
    gate: Gate, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer, "FETCH_EVERY_S_MIN", 0.0)
    before = await let_in(gate, site.token())
    site.keys = [NEW.as_dict(private=False)]

    await let_in(gate, site.token(NEW))

    assert "does not have" in await refusal(gate, site.token())
    assert not before.good()


async def test_tokens_with_made_up_keys_do_not_make_us_ask_again_and_again(
    gate: Gate, site: Site
) -> None:
    await let_in(gate, site.token())
    asked = site.asked
    for number in range(20):
        await refusal(gate, site.token(ECKey.generate_key("P-256", {"kid": str(number)}), "ES256"))

    assert site.asked <= asked + 1


async def test_while_the_issuer_is_away_its_last_keys_stay_but_not_for_ever(
    gate: Gate, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer, "FETCH_EVERY_S_MIN", 0.0)
    remembered = site.token()
    before = await let_in(gate, remembered)
    site.away = True
    await refusal(gate, site.token(NEW))

    await let_in(gate, site.token(sub="another"))

    monkeypatch.setattr(issuer, "KEPT_S_MAX", 0.0)
    monkeypatch.setattr(issuer, "FETCH_EVERY_S_MIN", 60.0)
    for token in (site.token(sub="a third"), remembered):
        found = await judged(gate, token)
        assert isinstance(found, Problem)
        assert (found.status, "Retry-After" in found.headers) == (503, True)
    assert not before.good()


async def test_an_issuer_that_was_away_at_the_start_is_asked_until_it_answers(
    gate: Gate, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer, "FETCH_EVERY_S_MIN", 0.05)
    site.away = True
    found = await judged(gate, site.token())
    assert isinstance(found, Problem)
    assert found.status == 503
    site.away = False

    async with asyncio.timeout(PATIENCE_S):
        while isinstance(found, Problem):
            await asyncio.sleep(0.02)
            found = await judged(gate, site.token())


@pytest.mark.parametrize(
    "listed",
    [
        OctKey.generate_key(256, {"kid": "old"}).as_dict(private=True),
        OLD.as_dict(private=True),
        OLD.as_dict(private=False) | {"use": "enc"},
        {"kty": "RSA", "kid": "old", "e": "AQAB", "n": "x" * 171},  # 1,024 bits
        {"kty": "RSA", "kid": "old"},
        "old",
    ],
)
async def test_what_is_no_public_key_to_verify_with_is_left_out(listed: Any) -> None:
    assert issuer.public_keys([listed]) == {}


@pytest.mark.parametrize(
    "said", [{"issuer": "http://elsewhere.example"}, {"jwks_uri": "http://elsewhere.example/keys"}]
)
async def test_a_discovery_that_leads_elsewhere_is_not_followed(
    gate: Gate, site: Site, said: dict[str, str]
) -> None:
    site.discovery = said

    found = await judged(gate, site.token())

    assert isinstance(found, Problem)
    assert found.status == 503
    assert not site.asked


def test_an_issuer_in_the_clear_is_refused_at_the_start() -> None:
    with pytest.raises(Refused, match="use an https address"):
        Gate.built("", "http://issuer.example", AUDIENCE, "", rate_per_s=1)
    with pytest.raises(Refused, match="use an https address"):
        Gate.built("", "https://issuer.example", AUDIENCE, "ftp://issuer.example", rate_per_s=1)
