"""Faults, forms and signatures, and requests that arrive in any number of pieces."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stripe

from ironcart.embedded.sandbox.book import Book
from ironcart.embedded.sandbox.control import Control
from ironcart.embedded.sandbox.faults import Fault, Faults, InvalidFaultError, parse_fault
from ironcart.embedded.sandbox.form import MAX_FIELDS, Form
from ironcart.embedded.sandbox.front import Front
from ironcart.embedded.sandbox.http import Connection
from ironcart.embedded.sandbox.mail import SmtpConnection
from ironcart.embedded.sandbox.mailbox import Mailbox
from ironcart.embedded.sandbox.records import Refused
from ironcart.embedded.sandbox.stripe_api import StripeApi
from ironcart.embedded.sandbox.webhooks import InvalidEndpointError, Webhooks, parse_endpoint, sign


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


class Parts:
    """Everything behind the sockets."""

    def __init__(self, folder: Path) -> None:
        self.faults = Faults(lambda what, fault: None)
        self.book = Book(folder / "ledger", 100)
        self.mailbox = Mailbox(folder / "mail")
        control = Control(self.book, self.mailbox, self.faults, Webhooks(folder / "webhooks"))
        self.front = Front(StripeApi(self.book, self.faults), control, self.faults)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    made = Parts(tmp_path)
    yield made
    made.book.close()
    made.mailbox.close()


def pieces_of(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 10_000])
def test_pipelined_mail_is_taken_whatever_pieces_it_comes_in(parts: Parts, size: int) -> None:
    bodies = [b"", b"..leading\r\n", b"Subject: a\r\n\r\nends.\r\n.. two\r\n...\r\n", b"x\r\n"]
    session = b"EHLO me\r\n"
    for body in bodies:
        session += b"MAIL FROM:<a@b.example> SIZE=10 BODY=8BITMIME\r\nRCPT TO:<c@d.example>\r\n"
        session += b"DATA\r\n" + body + b".\r\n"
    session += b"NOOP\r\nQUIT\r\n"
    wire = Wire()
    connection = SmtpConnection(parts.mailbox, parts.faults, set())
    connection.connection_made(wire)

    for piece in pieces_of(session, size):
        connection.data_received(piece)

    last_lines = [line for line in wire.written.split(b"\r\n") if line[3:4] == b" "]
    codes = [line[:3] for line in last_lines]
    assert codes == [b"220", b"250", *[b"250", b"250", b"354", b"250"] * 4, b"250", b"221"]
    assert wire.closed
    texts = [parts.mailbox.read(mail.message_id) for mail in parts.mailbox.list()]
    assert len(texts) == 4
    assert texts[2] is not None
    assert texts[2]["text"].splitlines() == ["ends.", ". two", ".."]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 10_000])
def test_mail_in_chunks_is_taken_byte_for_byte_whatever_pieces_it_comes_in(
    parts: Parts, size: int
) -> None:
    body = b"Message-ID: <m@a>\r\n\r\n.\r\n..two\r\nRSET\r\n"
    envelope = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
    session = b"EHLO me\r\n" + envelope + b"BDAT %d LAST\r\n%s" % (len(body), body)
    session += envelope + b"BDAT 5\r\n" + body[:5] + b"bdat %d last\r\n" % (len(body) - 5)
    session += body[5:] + b"BDAT 6 LAST\r\nQUIT\r\n" + b"QUIT\r\n"
    wire = Wire()
    connection = SmtpConnection(parts.mailbox, parts.faults, set())
    connection.connection_made(wire)

    for piece in pieces_of(session, size):
        connection.data_received(piece)

    codes = [line[:3] for line in wire.written.split(b"\r\n") if line[3:4] == b" "]
    once, chunked = [b"250"] * 3, [b"250"] * 4
    assert codes == [b"220", b"250", *once, *chunked, b"503", b"221"]
    texts = [parts.mailbox.read(mail.message_id) for mail in parts.mailbox.list()]
    assert [text and text["text"] for text in texts] == [".\r\n..two\r\nRSET\r\n"] * 2


@pytest.mark.parametrize("length", [997, 998, 999, 1000])
@pytest.mark.parametrize("before", [b"", b"x\r\n", b"x" * 998 + b"\r\n"])
@pytest.mark.parametrize("after", [b"", b"\r\nx", b"\r\n" + b"x" * 998 + b"\r\n\r\n"])
def test_a_line_may_have_998_bytes_and_no_more(
    parts: Parts, before: bytes, length: int, after: bytes
) -> None:
    body = before + b"y" * length + after
    wire = Wire()
    connection = SmtpConnection(parts.mailbox, parts.faults, set())
    connection.connection_made(wire)

    connection.data_received(b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\n")
    connection.data_received(b"BDAT %d LAST\r\n%s" % (len(body), body))

    assert len(parts.mailbox.list()) == (length <= 998)


@pytest.mark.parametrize(
    ("session", "answer"),
    [
        (b"BDAT many LAST\r\n", b"421"),
        (b"BDAT 99999999 LAST\r\n", b"552"),
        (b"MAIL FROM:<a@b>\r\n", b"503"),
        (b"EHLO x\r\nRCPT TO:<a@b>\r\n", b"503"),
        (b"EHLO x\r\nMAIL FROM:<a@b>\r\nMAIL FROM:<a@b>\r\n", b"503"),
        (b"EHLO x\r\nMAIL FROM:<a@b>\r\nDATA\r\n", b"503"),
        (b"EHLO x\r\nMAIL FROM:<a@b>\r\nRSET\r\nRCPT TO:<a@b>\r\n", b"503"),
        (b"EHLO x\r\nMAIL TO:<a@b>\r\n", b"501"),
        (b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<>\r\n", b"501"),
        (b"EHLO x\r\nMAIL FROM:<a@b> SIZE=99999999\r\n", b"552"),
        (b"HELO x\r\nVRFY a\r\n", b"252"),
        (b"SING\r\n", b"500"),
        (b"x" * 5000, b"421"),
        (
            b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n" + b"x" * 999 + b"\r\n.\r\n",
            b"500",
        ),
    ],
)
def test_a_wrong_smtp_command_is_told_so(parts: Parts, session: bytes, answer: bytes) -> None:
    wire = Wire()
    connection = SmtpConnection(parts.mailbox, parts.faults, set())
    connection.connection_made(wire)

    connection.data_received(session)

    assert wire.written.split(b"\r\n")[-2].startswith(answer)
    assert parts.mailbox.list() == []


@pytest.mark.parametrize("size", [1, 3, 50, 100_000])
def test_pipelined_requests_are_answered_in_order(parts: Parts, size: int) -> None:
    body = b"amount=5&currency=eur&metadata%5Border_id%5D=ORD%2D1"
    create = (
        b"POST /v1/payment_intents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk_test_x\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    look = b"GET /sandbox/charges?order_id=ORD-1 HTTP/1.1\r\nHost: x\r\n\r\n"
    wire = Wire()
    connection = Connection(parts.front, set())
    connection.connection_made(wire)

    for piece in pieces_of(create + look + create, size):
        connection.data_received(piece)

    answers = wire.written.split(b"HTTP/1.1 200 OK\r\n")[1:]
    bodies = [json.loads(answer.partition(b"\r\n\r\n")[2]) for answer in answers]
    assert [entry["order_id"] for entry in bodies[1]] == ["ORD-1"]
    assert bodies[0]["id"] == bodies[1][0]["id"] != bodies[2]["id"]


def test_what_is_not_http_or_too_large_is_cut_off(parts: Parts) -> None:
    large = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 2_000_000
    for sent in (b"hello\r\n\r\n", large):
        wire = Wire()
        connection = Connection(parts.front, set())
        connection.connection_made(wire)
        connection.data_received(sent)
        assert (wire.closed, wire.written) == (True, b"")


def test_a_fault_strikes_at_its_rate_until_its_time_is_over() -> None:
    now, draws = [0.0], iter([0.2, 0.3, 0.29, 0.9])
    told: list[tuple[str, str]] = []
    faults = Faults(
        lambda what, fault: told.append((what, fault.mode)), lambda: now[0], lambda: next(draws)
    )
    faults.set(Fault("down", rate=0.3, seconds=10))

    struck = [faults.strikes("down") is not None for _ in range(4)]
    assert faults.strikes("slow") is None
    left = faults.report()["faults"][0]["seconds_left"]
    now[0] = 10.0
    after = faults.strikes("down")

    assert struck == [True, False, True, False]
    assert (left, after) == (10, None)
    assert faults.report()["faults"] == []
    assert faults.report()["hits"]["down"] == 2
    assert told == [("set", "down"), ("expired", "down")]


def test_a_rate_of_zero_never_strikes_and_a_clear_switches_all_off() -> None:
    faults = Faults(lambda what, fault: None, draw=lambda: 0.0)
    faults.set(Fault("down", rate=0))
    faults.set(Fault("error"))
    assert faults.strikes("down") is None
    assert faults.strikes("error") is not None
    faults.clear()
    assert faults.strikes("error") is None


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not a fault"),
        (b"{}", "mode"),
        (b'{"mode":"up"}', "mode must be one of down, slow"),
        (b'{"mode":"down","rate":1.1}', "rate must be from 0 to 1; got 1.1"),
        (b'{"mode":"down","rate":"x"}', "rate"),
        (b'{"mode":"down","seconds":0}', "seconds must be above 0"),
        (b'{"mode":"slow","delay_s":-1}', "delay_s must be from 0"),
        (b'{"mode":"down","sconds":1}', "sconds"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_in_one_line(body: bytes, says: str) -> None:
    with pytest.raises(InvalidFaultError) as refused:
        parse_fault(body)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_form_reads_what_the_sdk_writes() -> None:
    form = Form(b"metadata[a]=1%262&metadata%5Bb%5D=x+y&amount=12&flag=True&empty=", _Anything())

    assert form.mapping("metadata") == {"a": "1&2", "b": "x y"}
    assert form.integer("amount", 1, 99) == 12
    assert form.flag("flag")
    assert not form.flag("missing")
    assert form.text("empty") is None


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1e3", "100", "٣", "", "9" * 5000])
def test_a_bad_integer_is_refused(value: str) -> None:
    encoded = "amount=" + "".join(f"%{byte:02x}" for byte in value.encode())
    with pytest.raises(Refused) as refused:
        Form(encoded.encode(), {"amount"}).integer("amount", 1, 99)
    assert refused.value.failure.code == "parameter_invalid_integer"


@pytest.mark.parametrize("encoded", [b"nope=1", b"a=%ff", b"a=\xff", b"a&" * (MAX_FIELDS + 1)])
def test_an_unknown_parameter_or_a_broken_form_is_refused(encoded: bytes) -> None:
    with pytest.raises(Refused):
        Form(encoded, {"a"})


def test_the_signature_is_one_the_official_sdk_accepts() -> None:
    payload = b'{"id":"evt_1","object":"event","type":"x"}'
    header = sign(payload, "whsec_1", 1_800_000_000)

    stripe.WebhookSignature.verify_header(payload.decode(), header, "whsec_1", None)
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.WebhookSignature.verify_header(payload.decode(), header, "whsec_2", None)


@pytest.mark.parametrize(
    "body", [b"{}", b'{"url":"x","secret":"s"}', b'{"url":"http://x","secret":""}']
)
def test_an_endpoint_that_cannot_be_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidEndpointError):
        parse_endpoint(body)


class _Anything:
    def __contains__(self, _name: object) -> bool:
        return True
