"""What HTTP callers may send, to the character: headers, queries and bodies at their limits.

Whatever is refused is refused with a problem (RFC 9457), and nothing is ever answered with a 5xx.
"""

import base64
import json
import secrets
from typing import Any

import pytest

from http_calls import PROBLEM, an_order, converse, send
from ironcart.services.orders.api import read_wait_s
from ironcart.toolkit.http.routes import BODY_BYTES_MAX, Call
from shopping import System


def cursor_of(position: Any) -> str:
    written = position if isinstance(position, bytes) else json.dumps(position).encode()
    return base64.urlsafe_b64encode(written).decode()


# --- Idempotency-Key -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["", '""', "k" * 256, '"' + "k" * 256 + '"', '"', '"a"b"', '"a', "a\tb", "schlüssel"],
)
async def test_a_key_that_is_not_1_to_255_printable_characters_is_refused(
    system: System, key: str
) -> None:
    reply = await send(system, "POST", "/orders", an_order(), Idempotency_Key=key)
    assert reply.status == 400
    assert "Idempotency-Key" in reply.json["detail"]


async def test_a_key_of_one_character_is_a_key(system: System) -> None:
    # Others may have used it for another body.
    reply = await send(system, "POST", "/orders", an_order(), Idempotency_Key="k")
    assert reply.status in (202, 422)


@pytest.mark.parametrize("length", [8, 255])
async def test_a_key_is_the_same_quoted_bare_and_padded(system: System, length: int) -> None:
    key, body = secrets.token_urlsafe(length)[:length], an_order()
    if length == 255:
        key = "a b" + key[3:]
    replies = [
        await send(system, "POST", "/orders", body, Idempotency_Key=written)
        for written in (key, f'"{key}"', f" {key} ", key)
    ]
    assert [reply.status for reply in replies] == [202] * 4
    assert len({reply.body for reply in replies}) == 1


async def test_a_key_that_stands_for_another_body_is_a_422(system: System) -> None:
    key = secrets.token_hex(8)
    first = await send(system, "POST", "/orders", an_order(), Idempotency_Key=key)
    second = await send(system, "POST", "/orders", an_order(), Idempotency_Key=key)
    assert (first.status, second.status) == (202, 422)


async def test_a_key_outlives_an_invalid_attempt(system: System) -> None:
    key = secrets.token_hex(8)
    bad = await send(system, "POST", "/orders", {"items": []}, Idempotency_Key=key)
    good = await send(system, "POST", "/orders", an_order(), Idempotency_Key=key)
    assert (bad.status, good.status) == (400, 202)


# --- Prefer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "wait_s"),
    [
        ([], 0),
        ([b"wait=0"], 0),
        ([b"wait=5"], 5),
        ([b"wait=30"], 30),
        ([b"wait=99"], 30),
        ([b"wait=" + b"9" * 4000], 30),
        ([b"Wait = 5"], 5),
        ([b'wait="5"'], 5),
        ([b"respond-async, wait=5"], 5),
        ([b"wait=5; strict, return=minimal"], 5),
        ([b"respond-async", b"wait=5"], 5),
        ([b"wait=5, wait=9"], 5),
        ([b""], 0),
        ([b"wait"], 0),
        ([b"wait="], 0),
        ([b"wait=-5"], 0),
        ([b"wait=1.5"], 0),
        ([b"wait=5s"], 0),
        ([b'wait="5'], 0),
        ([b"await=5"], 0),
        ([b"foo; wait=5"], 0),
        ([b"\xff,,;="], 0),
    ],
)
def test_prefer_is_read_as_its_rfc_says_and_oddities_are_ignored(
    written: list[bytes], wait_s: float
) -> None:
    scope = {"type": "http", "headers": [(b"prefer", value) for value in written]}
    assert read_wait_s(Call(scope)) == wait_s


# --- queries -------------------------------------------------------------------------------------

LISTS = (
    ("orders", "/orders"),
    ("inventory", "/stock"),
    ("notifications", "/notifications"),
    ("audit", "/audit/ORD-1"),
)


@pytest.mark.parametrize(("service", "path"), LISTS)
@pytest.mark.parametrize("limit", ["0", "501", "x", "", "-1", "1.0", "1e2", "%D9%A1", "1%0A", "+1"])
async def test_a_limit_that_is_not_1_to_500_is_refused(
    system: System, service: str, path: str, limit: str
) -> None:
    reply = await send(system, "GET", f"{path}?limit={limit}", service=service)
    assert (reply.status, reply.pointers()) == (400, ["/limit"])


@pytest.mark.parametrize(("service", "path"), LISTS[:3])
@pytest.mark.parametrize("limit", ["1", "500"])
async def test_a_limit_of_1_to_500_is_kept(
    system: System, service: str, path: str, limit: str
) -> None:
    reply = await send(system, "GET", f"{path}?limit={limit}", service=service)
    assert reply.status == 200
    assert len(reply.json["items"]) <= int(limit)


@pytest.mark.parametrize(("service", "path"), LISTS)
@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "garbage",
        "%00",
        "%FF",
        "A" * 5000,
        cursor_of(None),
        cursor_of({}),
        cursor_of([1]),
        cursor_of(b"\xff"),
        cursor_of(b"[" * 700),
        cursor_of(b'{"after":"\\ud800"}'),
        cursor_of({"after": "a\0"}),
        cursor_of({"created_at": "2026-01-01T00:00:00Z", "order_id": "a\0"}),
        cursor_of({"created_at": "2026-01-01T00:00:00", "order_id": "a"}),
        cursor_of({"created_at": "0001-01-01T00:00:00+23:59", "order_id": "a"}),
        cursor_of({"created_at": "9999-12-31T23:59:59-23:59", "order_id": "a"}),
        cursor_of({"created_at_us": -(2**63), "order_id": "a", "template": "a", "channel": "a"}),
        cursor_of({"created_at_us": 1, "order_id": "a", "template": "a\0", "channel": "a"}),
        cursor_of({"stored_at_us": 2**63, "stream": "A", "stream_seq": 1}),
        cursor_of({"stored_at_us": 1, "stream": "A", "stream_seq": 2**64}),
    ],
)
async def test_a_cursor_that_was_never_given_is_refused(
    system: System, service: str, path: str, cursor: str
) -> None:
    reply = await send(system, "GET", f"{path}?cursor={cursor}", service=service)
    assert (reply.status, reply.pointers()) == (400, ["/cursor"])


@pytest.mark.parametrize(
    ("service", "query", "pointer"),
    [
        ("orders", "/orders?status=paid", "/status"),
        ("orders", "/orders?status=", "/status"),
        ("orders", "/orders?status=Pending", "/status"),
        ("orders", "/orders?customer_id=", "/customer_id"),
        ("orders", "/orders?customer_id=a%00", "/customer_id"),
        ("orders", "/orders?customer_id=a%0A", "/customer_id"),
        ("orders", "/orders?customer_id=%FF", "/customer_id"),
        ("orders", f"/orders?customer_id={'a' * 65}", "/customer_id"),
        ("notifications", "/notifications?order_id=", "/order_id"),
        ("notifications", "/notifications?order_id=a%2Fb", "/order_id"),
        ("audit", "/audit/verify?stream=NOPE", "/stream"),
        ("audit", "/audit/verify?stream=ORDERS%00", "/stream"),
    ],
)
async def test_a_query_for_what_cannot_be_is_refused(
    system: System, service: str, query: str, pointer: str
) -> None:
    reply = await send(system, "GET", query, service=service)
    assert (reply.status, reply.pointers()) == (400, [pointer])


async def test_a_query_that_nobody_knows_is_ignored(system: System) -> None:
    assert (await send(system, "GET", "/orders?page=7&%00=1&&&=")).status == 200


# --- bodies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 202),
        ("application/json; charset=utf-8", 202),
        ("Application/JSON ;charset=UTF-8", 202),
        ("", 415),
        ("text/plain", 415),
        ("application/json, text/html", 415),
        ("application/jsonx", 415),
        ("multipart/form-data", 415),
        (PROBLEM, 415),
    ],
)
async def test_only_json_is_taken_whatever_its_charset(
    system: System, kind: str, status: int
) -> None:
    headers = {"Content-Type": kind}
    assert (await send(system, "POST", "/orders", an_order(), **headers)).status == status
    stock = await send(
        system, "PUT", "/stock/SKU-1", {"on_hand": 1}, service="inventory", **headers
    )
    assert stock.status == (200 if status == 202 else status)


async def test_a_body_may_be_64_kib_and_not_a_byte_more(system: System) -> None:
    body = json.dumps(an_order()).encode()
    fits = body + b" " * (BODY_BYTES_MAX - len(body))
    assert (await send(system, "POST", "/orders", fits)).status == 202
    refused = await send(system, "POST", "/orders", fits + b" ")
    assert refused.status == 413
    assert str(BODY_BYTES_MAX) in refused.json["detail"]
    stock = await send(system, "PUT", "/stock/SKU-1", fits + b" ", service="inventory")
    assert stock.status == 413


@pytest.mark.parametrize("size", [BODY_BYTES_MAX + 1, 20 * BODY_BYTES_MAX])
async def test_a_body_without_a_length_has_the_same_limit(system: System, size: int) -> None:
    chunk = b" " * 1000
    chunks = [b"%x\r\n%b\r\n" % (len(chunk), chunk)] * (size // len(chunk) + 1)
    said = await converse(
        system,
        b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks) + b"0\r\n\r\n",
    )
    assert said.startswith(b"HTTP/1.1 413 ")
    assert PROBLEM.encode() in said


BROKEN = (
    b"",
    b" ",
    b"{",
    b"{}x",
    b"[]",
    b"null",
    b"1",
    b"NaN",
    b"\xff",
    b"\xef\xbb\xbf{}",
    b'{"customer_id":"\xed\xa0\x80"}',
    b'{"customer_id":"a\x00"}',
    b'{"customer_id":"\\ud800"}',
    b'{"\\udfff":1}',
    b'{"customer_id":"\\u0000"}',
    b'{"\\u0000":1}',
    b'{"amount":1e400}',
    b'{"amount":NaN}',
    b'{"amount":Infinity}',
    b'{"amount":"1.00"}',
    b"[" * 60_000,
    b'{"a":' * 12_000,
    b'{"items":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    b'{"items":' + b"9" * 60_000 + b"}",
    b'{"on_hand":' + b"9" * 60_000 + b"}",
    b'{"on_hand":1e3}',
    b'{"on_hand":1.0}',
    b'{"on_hand":-1}',
    b'{"on_hand":1000000000001}',
    b'{"on_hand":true}',
    b'{"on_hand":1,"reserved":0}',
    b'{"delta":1,"reason":"\\u0000"}',
    b'{"delta":1,"reason":"\\ud800"}',
)


@pytest.mark.parametrize("body", BROKEN, ids=lambda body: repr(body[:24]))
@pytest.mark.parametrize(
    ("method", "service", "path"),
    [
        ("POST", "orders", "/orders"),
        ("PUT", "inventory", "/stock/SKU-1"),
        ("POST", "inventory", "/stock/SKU-1/adjustments"),
    ],
)
async def test_a_body_that_is_broken_deep_or_huge_is_a_400(
    system: System, method: str, service: str, path: str, body: bytes
) -> None:
    assert (await send(system, method, path, body, service=service)).status == 400


HOSTILE_TEXTS = ("\0", "a\0b", "\ud800", "\udfff\ud800", "a\nb", "", "a" * 5000)


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=ascii)
@pytest.mark.parametrize("field", ["customer_id", "currency", "email", "name", "payment_method"])
async def test_no_field_of_an_order_takes_a_hostile_text(
    system: System, field: str, text: str
) -> None:
    assert (await send(system, "POST", "/orders", an_order(**{field: text}))).status == 400


@pytest.mark.parametrize("sku", HOSTILE_TEXTS, ids=ascii)
async def test_no_line_takes_a_hostile_sku(system: System, sku: str) -> None:
    lines = [{"sku": sku, "quantity": 1, "unit_price": 1}]
    assert (await send(system, "POST", "/orders", an_order(items=lines))).status == 400


async def test_every_fault_of_an_order_is_named_at_once(system: System) -> None:
    body = {
        "customer_id": "C 1",
        "currency": "EUR",
        "email": "nobody",
        "amount": 1.001,
        "a/b~c": 1,
        "items": [
            {"sku": "SKU-1", "quantity": 1, "unit_price": 1},
            {"sku": "", "quantity": 10**400, "unit_price": -1, "colour": "red"},
            {},
            7,
        ],
    }
    reply = await send(system, "POST", "/orders", body)
    assert reply.status == 400
    assert set(reply.pointers()) == {
        "/a~1b~0c",
        "/amount",
        "/customer_id",
        "/email",
        "/items/1/colour",
        "/items/1/quantity",
        "/items/1/sku",
        "/items/1/unit_price",
        "/items/2/quantity",
        "/items/2/sku",
        "/items/2/unit_price",
        "/items/3",
    }


async def test_of_equal_keys_in_a_body_the_last_one_counts(system: System) -> None:
    body = json.dumps(an_order()).encode()
    twice = await send(system, "POST", "/orders", b'{"customer_id":"C 1",' + body[1:])
    assert twice.status == 202
    twice = await send(system, "POST", "/orders", body[:-1] + b',"customer_id":"C 1"}')
    assert (twice.status, twice.pointers()) == (400, ["/customer_id"])


@pytest.mark.parametrize(
    "email",
    [
        "a@b..example",
        "a@-b.example",
        "a@b.example.",
        "a b@c.example",
        "a@b@c.example",
        "<a@b.example>",
        "a@b.example\nBcc: c@d.example",
        "a\u2028@b.example",
        "a\u200b@b.example",
        "é" * 33 + "@b.example",
        "a" * 65 + "@b.example",
        "a" * 64 + "@" + "b" * 63 + "." + "c" * 63 + "." + "d" * 60 + ".example",
    ],
)
async def test_an_address_that_no_mail_reaches_is_refused_at_the_door(
    system: System, email: str
) -> None:
    reply = await send(system, "POST", "/orders", an_order(email=email))
    assert (reply.status, reply.pointers()) == (400, ["/email"])


def test_none_of_it_breaks_an_invariant(system: System) -> None:
    system.verify()
