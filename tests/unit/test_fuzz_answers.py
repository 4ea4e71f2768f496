"""Whatever the gateway, a mail server or the sandbox's caller says ends with a verdict."""

import asyncio
from typing import Any, cast
from urllib.parse import quote_plus

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st
from stripe import _encode

from ironcart.embedded.sandbox.form import Form
from ironcart.embedded.sandbox.records import Refused
from ironcart.services.notifications.gateway.mailer import _Wire
from ironcart.services.payments.gateway.connections import _Connection
from ironcart.services.payments.gateway.wire import Wire, form
from mutations import CUTS, mutated, pieces

ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nRequest-Id: req_1\r\n\r\n{}",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 402 No\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}",
]


class Nowhere(asyncio.Transport):
    """Stands where the connection does: what is sent goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = False

    def write(self, data: Any) -> None:
        del data

    def abort(self) -> None:
        self.dropped = True

    def close(self) -> None:
        self.dropped = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        del protocol


async def outcome(said: list[bytes]) -> tuple[object, ...]:
    """What becomes of a call that is answered with these bytes, and then with silence."""
    connection, transport = _Connection(), Nowhere()
    connection.connection_made(transport)
    asking = asyncio.ensure_future(connection.ask(b"POST / HTTP/1.1\r\n\r\n"))
    await asyncio.sleep(0)
    for piece in said:
        connection.data_received(piece)
    connection.connection_lost(None)
    try:
        return (*(await asking), connection.lasts)
    except ConnectionError:
        return ("unknown", connection.lasts)


@given(mutated(ANSWERS), CUTS)
async def test_an_answer_of_the_gateway_is_whole_or_unknown_wherever_it_is_cut(
    said: bytes, cuts: list[int]
) -> None:
    at_once = await outcome([said])
    in_pieces = await outcome(pieces(said, cuts))
    assert at_once[:-1] == in_pieces[:-1]
    assert not in_pieces[-1]  # The line was lost in the end: nobody may ask over it again.


OBJECTS = [
    b'{"id":"pi_1","object":"payment_intent","status":"succeeded","amount":1999}',
    b'{"error":{"type":"card_error","code":"card_declined","decline_code":"generic_decline"}}',
    b'{"error":{"type":"invalid_request_error","param":"amount","message":"no"}}',
]


@given(mutated(OBJECTS), st.sampled_from([200, 204, 301, 400, 401, 402, 404, 409, 429, 500, 503]))
def test_what_the_gateway_answers_is_an_object_or_one_of_its_sdks_errors(
    body: bytes, status: int
) -> None:
    wire = Wire("sk_test_1", {})
    try:
        found = wire.read((status, body, {"request-id": "req_1"}))
    except (stripe.StripeError, UnicodeDecodeError):
        return
    assert 200 <= status < 300
    assert found is not None


VALUES = st.one_of(st.text(max_size=20), st.integers(), st.booleans())
NAMES = st.from_regex("[a-z_]{1,12}", fullmatch=True)
PARAMS = st.dictionaries(
    NAMES,
    VALUES
    | st.lists(st.text(max_size=20) | st.integers(), max_size=3)
    | st.dictionaries(NAMES, VALUES, max_size=3),
    max_size=5,
)


@given(PARAMS)
def test_a_form_is_what_the_gateways_own_sdk_would_send(params: dict[str, Any]) -> None:
    theirs = _encode._api_encode(params)
    written = "&".join(f"{name}={stripe_quoted(value)}" for name, value in theirs)
    assert form(params).decode() == written


def stripe_quoted(value: Any) -> str:
    return quote_plus(str(value), safe="[]")


@given(mutated([b"amount=1999&metadata[order_id]=ORD-1&confirm=true", b"a=%C3%A9&limit=10"]))
def test_a_form_is_read_or_refused(encoded: bytes) -> None:
    try:
        read = Form(encoded, {"amount", "metadata", "confirm", "a", "limit"})
        number = read.integer("amount", 1, 99_999_999)
        read.flag("confirm")
        assert all(isinstance(each, str) for each in read.mapping("metadata").values())
    except Refused as refusal:
        number = 1 if refusal.failure.status == 400 else -1
    assert number is None or 1 <= number <= 99_999_999


REPLIES = [
    b"250 2.1.0 OK\r\n250 2.1.5 OK\r\n354 go on\r\n",
    b"250-first\r\n250-second\r\n250 last\r\n550 5.1.1 nobody\r\n421 bye\r\n",
]


def codes_of(said: bytes) -> list[int]:
    """What RFC 5321 makes of replies: the last line of each has no hyphen behind its number."""
    lines = said.split(b"\n")[:-1]
    return [int(line[:3]) if line[:3].isdigit() else 0 for line in lines if line[3:4] != b"-"]


async def codes_heard(said: list[bytes]) -> tuple[list[int], bool]:
    transport = Nowhere()
    wire = _Wire(cast("asyncio.Transport", transport), {})
    wire._codes, wire._wanted = [], 10_000
    wire._answered = asyncio.get_running_loop().create_future()
    for piece in said:
        wire.data_received(piece)
    return wire._codes, transport.dropped


@given(mutated(REPLIES), CUTS)
async def test_replies_of_a_mail_server_are_counted_the_same_wherever_they_are_cut(
    said: bytes, cuts: list[int]
) -> None:
    codes, dropped = await codes_heard(pieces(said, cuts))
    assert codes == codes_of(said)
    assert not dropped
    assert all(0 <= code <= 999 for code in codes)


async def test_a_reply_without_an_end_is_dropped() -> None:
    _, dropped = await codes_heard([b"2" * 40_000, b"5" * 40_000])
    assert dropped


@pytest.mark.parametrize("unasked", [b"250 OK\r\n", b"\xff"])
async def test_a_reply_that_nobody_asked_for_ends_the_conversation(unasked: bytes) -> None:
    transport = Nowhere()
    wire = _Wire(cast("asyncio.Transport", transport), {})
    wire.data_received(unasked)
    assert transport.dropped
    assert wire.lost
