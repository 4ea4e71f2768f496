"""Whatever comes over the broker is read or refused, and nothing that was refused gets further."""

import base64
import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import to_builtins
from nats.errors import ProtocolError
from test_toolkit_wire import LISTENER, USUAL, Recorder, heard

from ironcart.events import AMOUNT_MINOR_UNITS_MAX, CURRENCIES, SUBJECTS
from ironcart.toolkit.deadletters import _parse
from ironcart.toolkit.envelope import decode, decode_data, decode_json, encode_json, event_id
from ironcart.toolkit.outcomes import Poison
from ironcart.verify.wire import read_event
from mutations import CUTS, mutated

GOLDEN = [path.read_bytes() for path in sorted((Path(__file__).parent / "golden").glob("*.json"))]
BY_NAME = {kind.__name__: kind for kind in SUBJECTS}


def texts(value: Any) -> Iterator[str]:
    """Every string in what was parsed, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        for each in inner:
            yield from texts(each)


def is_uuid(text: str) -> bool:
    try:
        return bool(uuid.UUID(text))
    except ValueError:
        return False


@given(mutated(GOLDEN))
def test_an_event_that_is_taken_can_be_kept_and_says_the_same_when_it_is_read_again(
    body: bytes,
) -> None:
    try:
        envelope = decode(body)
        data = decode_data(envelope, BY_NAME)
    except Poison:
        return
    for text in texts([to_builtins(data), envelope.id, envelope.type, envelope.trace_id]):
        assert "\0" not in text
        assert text.encode()
    assert decode_json(type(data), encode_json(data)) == data
    assert envelope.key == decode(body).key
    assert envelope.timestamp.tzinfo is not None


@given(mutated(GOLDEN))
def test_money_that_is_taken_is_a_whole_number_of_minor_units(body: bytes) -> None:
    try:
        envelope = decode(body)
        data = decode_data(envelope, BY_NAME)
    except Poison:
        return
    amount = getattr(data, "amount", None)
    if amount is not None:
        scaled = amount * 10 ** CURRENCIES[getattr(data, "currency", None) or "EUR"]
        assert scaled == int(scaled)
        assert 0 <= scaled <= AMOUNT_MINOR_UNITS_MAX


@pytest.mark.parametrize("field", [b'"\x80"', b'"a\xed\xa0\x80"'])
def test_bytes_that_are_no_text_are_refused_where_nobody_looks_as_well(field: bytes) -> None:
    for at in (b'"id"', b'"order_id"'):
        with pytest.raises(Poison):
            decode(GOLDEN[0].replace(at, field + b":1," + at, 1))
    assert decode(GOLDEN[0].replace(b'"id"', '"\u00e9":1,"id"'.encode(), 1))


@given(mutated(GOLDEN))
def test_what_a_service_takes_the_outside_checker_takes_as_well(body: bytes) -> None:
    try:
        envelope = decode(body)
        decode_data(envelope, BY_NAME)
    except Poison:
        return
    seen = read_event("ORDERS", 1, "orders.created", body)
    assert seen.valid
    assert (seen.type, seen.aggregate) == (envelope.type, envelope.aggregate_id)
    if is_uuid(envelope.id):  # Any other id is mapped to one, by each in its own way.
        assert seen.id == envelope.key.bytes


@given(st.text(max_size=30), st.text(max_size=30), st.integers(1, 2**31 - 1))
def test_the_id_of_a_fact_is_the_published_recipe(owner: str, aggregate: str, version: int) -> None:
    made = event_id(owner, aggregate, version)
    assert made.version == 5
    assert made == event_id(owner, aggregate, version)
    assert made != event_id(owner, aggregate, version % (2**31 - 1) + 1)


HEADER = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=60)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                *("Service", "Type", "Reason", "Attempts", "Stream", "Stream-Sequence"),
                *("Subject", "Headers", "Parked-At", "Error"),
            ]
        ),
        HEADER | st.sampled_from(["-1", "1e3", "", "9" * 5_000, "{", '{"a":1}', "[" * 2_000]),
    ),
    st.binary(max_size=60),
)
def test_a_dead_letter_that_somebody_else_wrote_can_still_be_listed(
    headers: dict[str, str], noise: bytes
) -> None:
    lines = [f"Ironcart-{name}: {value}" for name, value in headers.items()]
    block = "\r\n".join(["NATS/1.0", *lines]).encode() + noise
    encoded = base64.b64encode(block).decode()
    found = _parse({"seq": 5, "hdrs": encoded, "data": base64.b64encode(noise).decode()})
    assert found.seq == 5
    assert found.body == noise
    assert found.attempts >= 0
    assert found.stream_seq >= 0


BLOCKS = mutated(
    [
        b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n",
        b"NATS/1.0 404 No Messages\r\n\r\n",
        b"NATS/1.0 100 Idle\r\nNats-Last-Stream: 5\r\n\r\n",
        b"NATS/1.0 \xff\xff\xff\xff\r\n\r\n",
        b"NATS/1.0",
        b"\r\n",
        b"",
    ]
)
GOOD = b"HMSG events.said 7 back 12 14\r\nNATS/1.0\r\n\r\n{}\r\n"


def with_block(block: bytes, body: bytes, subject: bytes = b"events.said") -> bytes:
    sizes = b"%d %d" % (len(block), len(block) + len(body))
    return b"HMSG %b %d back %b\r\n%b%b\r\n" % (subject, LISTENER, sizes, block, body)


SUBJECTS_OF_OTHERS = st.sampled_from([b"events.said", b"dlq.\xff", b"dlq.\xc3\xa9"])


@given(BLOCKS, SUBJECTS_OF_OTHERS, st.sampled_from([b"", b"{}", b" " * 20]), CUTS)
async def test_no_headers_and_no_subject_make_a_listener_deaf(
    block: bytes, subject: bytes, body: bytes, cuts: list[int]
) -> None:
    client = Recorder()
    await heard(client, with_block(block, body, subject) + GOOD, cuts)
    assert [each[2] for each in client.told] == [body, b"{}"]  # type: ignore[index]
    assert client.told[-1] == ("events.said", "back", b"{}", {})


@given(BLOCKS, CUTS)
async def test_a_block_of_headers_reads_the_same_however_it_is_cut(
    block: bytes, cuts: list[int]
) -> None:
    said = with_block(block, b"{}")
    assert await heard(Recorder(), said, cuts) == await heard(Recorder(), said, [])


PROTOCOL = mutated([GOOD, b"PING\r\n", b"MSG a 7 back 2\r\n{}\r\n", b"-ERR 'Slow'\r\n", b"+OK\r\n"])


@given(st.lists(PROTOCOL, max_size=3), CUTS)
async def test_what_is_no_protocol_ends_the_connection_and_not_the_reading(
    said: list[bytes], cuts: list[int]
) -> None:
    # The client connects anew after a ProtocolError; after any other it would be deaf for good.
    with suppress(ProtocolError):
        await heard(Recorder(), b"".join(said), cuts)


@pytest.mark.parametrize("sid", [LISTENER, USUAL])
async def test_json_in_json_is_no_deeper_than_a_reader_goes(sid: int) -> None:
    deep = b'{"data":' * 100_000
    with pytest.raises(Poison):
        decode(deep)
    assert read_event("ORDERS", sid, "orders.created", deep).valid is False
    with pytest.raises((ValueError, RecursionError)):
        json.loads(deep)
