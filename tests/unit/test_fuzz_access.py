"""Whatever stands in an Authorization header or a set of keys, no stranger comes in."""

import base64
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws, jwt
from joserfc.jwk import ECKey, RSAKey

from ironcart.toolkit.http.access import Gate, Pass, Scope
from ironcart.toolkit.http.access.apikeys import Entry, KeyRing, new_key, read_file, written
from ironcart.toolkit.http.access.callers import BadToken
from ironcart.toolkit.http.access.issuer import Issuer, public_keys
from ironcart.toolkit.http.access.tokens import Tokens
from ironcart.toolkit.http.problems import Problem
from ironcart.toolkit.outcomes import Refused
from mutations import mutated

URL, AUDIENCE = "https://issuer.example", "ironcart"
SIGNER = ECKey.generate_key("P-256", {"kid": "1", "use": "sig"})
CLAIMS = {
    "iss": URL,
    "aud": AUDIENCE,
    "sub": "shop",
    "exp": int(time.time()) + 86_400,
    "scope": "ironcart:storefront",
}
GENUINE = jwt.encode({"alg": "ES256", "kid": "1"}, CLAIMS, SIGNER).encode()
PUBLIC = SIGNER.as_dict(private=False)
OTHER = RSAKey.generate_key(2048, {"kid": "2", "use": "sig"}).as_dict(private=False)


def tokens() -> Tokens:
    issuer = Issuer(URL)
    issuer._take(public_keys([PUBLIC, OTHER]))
    issuer._fetched_at = time.monotonic()
    return Tokens(issuer, AUDIENCE)


def segment(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def test_the_genuine_token_is_good() -> None:
    assert tokens().read(GENUINE).scope is Scope.STOREFRONT


@given(mutated([GENUINE]))
def test_a_token_that_is_not_the_genuine_one_is_none(token: bytes) -> None:
    head, _, rest = token.partition(b".")
    body = rest.partition(b".")[0]
    same = GENUINE.split(b".")[:2] == [head, body]
    try:
        tokens().read(token)
    except BadToken:
        return
    assert same  # Only what is signed counts: base64 may be written in more than one way.


HEADS = [b'{"alg":"ES256","kid":"1"}', b'{"alg":"none"}', b'{"alg":"HS256","kid":"1"}', b"[]", b"1"]
BODIES = [json.dumps(CLAIMS).encode(), b"[]", b"null", b'{"sub":1,"exp":1e400}']


@given(mutated(HEADS), mutated(BODIES), st.binary(max_size=70))
def test_no_header_and_no_claims_come_in_without_a_signature(
    head: bytes, body: bytes, signature: bytes
) -> None:
    with pytest.raises(BadToken):
        tokens().read(b".".join(map(segment, (head, body, signature))))


@given(mutated([json.dumps(CLAIMS).encode()]))
def test_what_the_issuer_signs_is_judged_whatever_it_says(claims: bytes) -> None:
    signed = jws.serialize_compact({"alg": "ES256", "kid": "1"}, claims, SIGNER).encode()
    try:
        caller = tokens().read(signed)
    except BadToken:
        return
    assert caller.id.startswith("oidc:")
    assert json.loads(claims)["iss"] == URL


@pytest.mark.parametrize(
    "claims",
    [{"exp": 10**400}, {"exp": True}, {"exp": "1e9"}, {"sub": ["shop"]}, {"nbf": 10**400}],
    ids=["beyond all time", "no time", "text", "a list", "not for now"],
)
def test_odd_claims_of_the_issuer_let_nobody_in(claims: dict[str, Any]) -> None:
    said = json.dumps(CLAIMS | claims).encode()
    signed = jws.serialize_compact({"alg": "ES256", "kid": "1"}, said, SIGNER).encode()
    with pytest.raises(BadToken):
        tokens().read(signed)


def test_half_a_character_is_as_good_a_subject_as_any() -> None:
    said = json.dumps(CLAIMS | {"sub": "\ud800"}).encode()
    signed = jws.serialize_compact({"alg": "ES256", "kid": "1"}, said, SIGNER).encode()
    assert tokens().read(signed).id != tokens().read(GENUINE).id


@given(st.lists(mutated([json.dumps(PUBLIC).encode(), json.dumps(OTHER).encode()]), max_size=2))
def test_a_set_of_keys_is_read_as_far_as_it_is_one(listed: list[bytes]) -> None:
    parsed = []
    for each in listed:
        with suppress(ValueError, RecursionError):
            parsed.append(json.loads(each))
    found = public_keys(parsed)
    assert len(found) <= len(parsed)
    assert not any(key.is_private for key in found.values())


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    key, entry = new_key("shop", Scope.STOREFRONT)
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    path.write_text(written([entry]))
    return key, path


@given(data=st.data())
def test_only_the_key_itself_is_the_key(ring: tuple[str, Path], data: st.DataObject) -> None:
    key, path = ring
    gate = Gate(KeyRing(path, 1e9), rate_per_s=1e9)
    header = data.draw(mutated([b"Bearer " + key.encode()]))
    found = gate.judge([(b"authorization", header)], "127.0.0.1")
    if isinstance(found, Pass):
        assert header.partition(b" ")[2].strip(b" ") == key.encode()
    else:
        assert isinstance(found, Problem)
        assert found.status in (401, 429)
        assert key not in str(found.body())


@given(data=st.data())
def test_a_damaged_file_of_keys_is_read_or_refused(
    ring: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    _, path = ring
    damaged = path.with_name("damaged.json")
    damaged.write_bytes(data.draw(mutated([path.read_bytes()])))
    kept = read_file(path).keys[0].sha256
    said, found = "", tuple[Entry, ...]()
    try:
        found = read_file(damaged).keys
    except Refused as refusal:
        said = str(refusal)
    assert kept not in said
    assert all(len(each.sha256) == 64 for each in found)
