"""Whatever a caller sends is read exactly, or refused with what is wrong with it."""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import re
from decimal import Decimal
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import stripe
from hypothesis import given
from hypothesis import strategies as st

from ironcart.events import AMOUNT_MINOR_UNITS_MAX, CURRENCIES
from ironcart.services.notifications.gateway.addresses import is_public, may_be_called
from ironcart.services.orders.api.headers import WAIT_S_MAX, read_wait_s
from ironcart.services.orders.handlers.check import Draft, check
from ironcart.services.payments.gateway import is_signed
from ironcart.services.payments.gateway.signature import TOLERANCE_S
from ironcart.toolkit.http import Problem
from ironcart.toolkit.http.keys import read_key
from ironcart.toolkit.http.routes import Call, read_cursor, write_cursor
from mutations import mutated

ORDERS = [
    b"""{"customer_id":"C-1","currency":"EUR","items":[{"sku":"SKU-1","quantity":2,"unit_price":19.99}],
    "email":"a@b.example","name":"Ada","amount":39.98}""",
    b"""{"customer_id":"C-1","currency":"JPY","items":[{"sku":"A","quantity":1,"unit_price":5},
    {"sku":"A","quantity":1,"unit_price":7}],"payment_method":"pm_card_visa"}""",
]
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Position(msgspec.Struct):
    """What a cursor holds."""

    at: int
    order_id: str


def call(*headers: tuple[str, str], query: bytes = b"") -> Call:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return Call({"type": "http", "headers": raw, "query_string": query, "path_params": {}})


def refused(problem: Problem) -> None:
    assert problem.status == 400


@given(mutated(ORDERS))
def test_an_order_that_is_taken_comes_to_exactly_what_was_written(body: bytes) -> None:
    try:
        read = check(body, currency="EUR")
    except NOT_JSON:
        return
    if not isinstance(read, Draft):
        assert read
        assert all(fault.detail for fault in read)
        return
    written: dict[str, Any] = json.loads(body, parse_float=Decimal)
    minor = 10 ** CURRENCIES[read.currency]
    total = sum(line["unit_price"] * line["quantity"] for line in written["items"]) * minor
    assert total == read.amount_minor
    assert 1 <= read.amount_minor <= AMOUNT_MINOR_UNITS_MAX
    assert [item.sku for item in read.items] == [line["sku"] for line in written["items"]]
    assert re.fullmatch("[A-Za-z0-9._-]{1,64}", read.customer_id)
    if read.contact is not None:
        assert read.contact.email == written["email"]
        assert not re.search(r"[\s<>\x00-\x1f]", read.contact.email)


@given(st.text(max_size=40) | st.builds(lambda raw: base64.b64encode(raw).decode(), st.binary()))
def test_a_cursor_is_read_or_refused(text: str) -> None:
    try:
        found = read_cursor(call(query=f"cursor={quote(text)}".encode()), Position)
    except Problem as problem:
        refused(problem)
        return
    assert isinstance(found, Position)


@given(st.integers(0, 120), st.booleans())
def test_a_cursor_however_deep_is_refused(depth: int, known: bool) -> None:
    inner = b"[" * depth * 6 + b"]" * depth
    body = b'{"at":' + inner if known else b'{"at":1,"order_id":"a","more":' + inner
    text = base64.urlsafe_b64encode(body).decode()
    test_a_cursor_is_read_or_refused.hypothesis.inner_test(text)  # type: ignore[attr-defined]


@given(st.integers(), st.text(max_size=60))
def test_a_cursor_comes_back_as_it_was_given(at: int, order_id: str) -> None:
    written = write_cursor(Position(at % 2**62, order_id))
    found = read_cursor(call(query=f"cursor={quote(written)}".encode()), Position)
    assert found == Position(at % 2**62, order_id)


LATIN = st.text(st.characters(codec="latin-1"), max_size=300)
PRINTABLE = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126))


@given(LATIN | PRINTABLE | st.builds('"{}"'.format, PRINTABLE))
def test_an_idempotency_key_is_printable_and_quoted_or_bare_alike(text: str) -> None:
    try:
        key = read_key(call(("idempotency-key", text)))
    except Problem as problem:
        refused(problem)
        return
    assert key is not None
    assert 1 <= len(key) <= 255
    assert key.isascii()
    assert key.isprintable()
    assert key in text
    assert '"' in key or read_key(call(("idempotency-key", f'"{key}"'))) == key


@given(LATIN | st.from_regex(r'(?i)wait ?= ?"?[0-9]{1,400}"?(, ?respond-async)?', fullmatch=True))
def test_nobody_waits_longer_than_the_longest_wait(text: str) -> None:
    assert 0.0 <= read_wait_s(call(("prefer", text))) <= WAIT_S_MAX


SECRET, NOW, BODY = "whsec_of_a_test", 1_700_000_000, b'{"id":"evt_1"}'


def signed(body: bytes, at: int = NOW) -> str:
    given = hmac.new(SECRET.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={given}"


@given(mutated([signed(BODY).encode()]), mutated([BODY]))
def test_a_webhook_that_is_taken_was_signed_over_these_bytes(header: bytes, body: bytes) -> None:
    text = header.decode("latin-1")
    taken = is_signed(text, body, [SECRET], NOW)
    genuine = signed(body).partition("v1=")[2] in text and f"t={NOW}" in text
    assert genuine or not taken
    if (header, body) == (signed(BODY).encode(), BODY):
        assert taken


@given(st.binary(max_size=200), st.integers(-2 * TOLERANCE_S, 2 * TOLERANCE_S))
def test_a_webhook_is_taken_as_long_as_stripes_own_sdk_takes_it(body: bytes, late_s: int) -> None:
    header = signed(body, NOW - late_s)
    assert is_signed(header, body, [SECRET], NOW) == (abs(late_s) <= TOLERANCE_S)
    text = body.decode("latin-1")
    header = signed(text.encode(), NOW - late_s)
    assert stripe.WebhookSignature.verify_header(text, header, SECRET) is True
    assert is_signed(header, text.encode(), [SECRET], NOW - late_s)


URLS = [
    b"https://shop.example/hooks?token=a%20b",
    b"http://93.184.216.34:8080/",
    b"https://user@shop.example/#x",
    b"http://127.0.0.1/",
    b"http://[::1]/",
    b"http://2130706433/",
]


@given(mutated(URLS))
def test_the_url_of_an_endpoint_names_one_host_whoever_reads_it(raw: bytes) -> None:
    url = raw.decode("latin-1")
    if not may_be_called(url, allow_private=False):
        return
    parts = urlsplit(url)
    assert parts.scheme in ("http", "https")
    assert parts.username is None
    assert parts.password is None
    assert not parts.fragment
    assert parts.hostname
    assert re.fullmatch(r"[a-z0-9._-]+", parts.hostname)
    assert url.isascii()
    assert url.isprintable()
    try:
        assert is_public(parts.hostname)
    except ValueError:
        return  # A name: judged when it is connected to.


def inner_addresses(address: Any) -> list[Any]:
    """The IPv4 addresses that an IPv6 address leads to."""
    if address.version == 4:
        return []
    raw = address.packed
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if raw.startswith(binascii.unhexlify("0064ff9b") + bytes(8)):
        found.append(ipaddress.IPv4Address(raw[12:]))
    return [each for each in found if each is not None]


@given(
    st.ip_addresses(v=4)
    | st.ip_addresses(v=6)
    | st.builds(
        lambda prefix, inner: ipaddress.IPv6Address((prefix + inner.packed + bytes(16))[:16]),
        st.sampled_from([bytes(10) + b"\xff\xff", b"\x20\x02", b"\x00\x64\xff\x9b" + bytes(8)]),
        st.ip_addresses(v=4),
    )
)
def test_no_public_address_leads_to_one_that_is_not(address: Any) -> None:
    if not is_public(str(address)):
        return
    for each in (address, *inner_addresses(address)):
        kinds = (each.is_private, each.is_loopback, each.is_link_local, each.is_unspecified)
        assert not any((*kinds, each.is_multicast, each.is_reserved))
