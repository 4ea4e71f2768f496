"""Dead letters: whatever a message was, its letter fits into headers and can be read back."""

import base64
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironcart.toolkit.broker import Delivery, Outgoing
from ironcart.toolkit.deadletters import UNKNOWN_TYPE, DeadLetter, _parse, dead_letter
from ironcart.toolkit.topology import DEAD_LETTER_HEADER_BYTES_MAX

TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=300)


def delivery(headers: Mapping[str, str] | None = None, body: bytes = b"{}") -> Delivery:
    return Delivery("ORDERS", 42, "orders.created", body, headers or {}, 3, 0.0, "$JS.ACK.reply")


def letter(delivered: Delivery, *, reason: str = "why", error: str = "why") -> Outgoing:
    return dead_letter(
        "inventory", delivered, "OrderCreated", reason=reason, error=error, attempts=3
    )


def read_back(letter: Outgoing) -> DeadLetter:
    """As JetStream gives it: headers as one block, everything in base64."""
    lines = [f"{name}: {value}" for name, value in letter.headers.items()]
    block = "\r\n".join(["NATS/1.0", *lines, "", ""])
    return _parse(
        {
            "seq": 5,
            "hdrs": base64.b64encode(block.encode()).decode(),
            "data": base64.b64encode(letter.body).decode(),
        }
    )


def test_a_letter_says_what_where_and_why_and_keeps_the_bytes() -> None:
    found = read_back(letter(delivery({"Nats-Msg-Id": "x"}, b"\x00\xffgarbage"), reason="no JSON"))

    assert found.seq == 5
    assert (found.service, found.type, found.reason) == ("inventory", "OrderCreated", "no JSON")
    assert (found.stream, found.stream_seq, found.subject) == ("ORDERS", 42, "orders.created")
    assert found.attempts == 3
    assert found.headers == {"Nats-Msg-Id": "x"}
    assert found.body == b"\x00\xffgarbage"
    assert found.parked_at


def test_parking_a_message_twice_gives_one_letter() -> None:
    assert letter(delivery()).message_id == letter(delivery(), reason="other").message_id
    assert letter(delivery()).subject == "dlq.inventory.OrderCreated"


@given(TEXT, TEXT, st.dictionaries(st.from_regex(r"[A-Za-z-]{1,20}", fullmatch=True), TEXT))
def test_no_text_breaks_a_header_and_the_original_headers_come_back(
    reason: str, error: str, headers: dict[str, str]
) -> None:
    written = letter(delivery(headers), reason=reason, error=error)

    for value in written.headers.values():
        assert value.isascii()
        assert value == "" or value.isprintable()
    found = read_back(written)
    assert found.body == b"{}"
    assert set(found.headers) == set(headers)
    assert found.reason == written.headers["Ironcart-Reason"]


def test_headers_in_other_scripts_come_back_as_they_were() -> None:
    headers = {"X-Note": 'caf\u00e9 \u2013 \u6f22\u5b57 \U0001f6d2 \\xe9 " \x1f'}

    assert read_back(letter(delivery(headers))).headers == headers


@pytest.mark.parametrize("size", [15_000, 16_100, 900_000])
def test_a_letter_stays_within_what_a_dead_letter_may_add(size: int) -> None:
    huge = letter(
        delivery({"X": "\u00e9" * size}), reason="\u00e9" * 50_000, error="\U0001f6d2" * 50_000
    )

    total = sum(len(name) + len(value) + 4 for name, value in huge.headers.items())
    assert total < DEAD_LETTER_HEADER_BYTES_MAX
    assert read_back(huge).headers == {
        "Ironcart-Note": "the original headers were too large to keep"
    }


def test_a_letter_that_somebody_else_wrote_is_read_as_far_as_it_goes() -> None:
    found = _parse({"seq": 1, "data": base64.b64encode(b"x").decode()})

    assert (found.type, found.headers, found.body) == (UNKNOWN_TYPE, {}, b"x")
