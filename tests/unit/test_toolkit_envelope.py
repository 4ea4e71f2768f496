"""The envelope: the bytes of every released version for ever, and a reason for all garbage."""

import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from ironcart.events import KINDS, OWNERS, SUBJECTS
from ironcart.toolkit.envelope import (
    EVENT_NAMESPACE,
    NAME_CHARACTERS_MAX,
    TEXT_CHARACTERS_MAX,
    decode,
    decode_data,
    event_id,
    seal,
)
from ironcart.toolkit.outcomes import Fact, Poison

# <type>.v<n>.json is what we wrote in version n; -elsewhere is what others may send.
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))
OURS = [path for path in GOLDEN if not path.stem.endswith("-elsewhere")]
BY_NAME = {kind.__name__: kind for kind in KINDS.values()}
OWNER_OF = {kind.__name__: owner for owner, (_, kinds) in OWNERS.items() for kind in kinds}
ID = "0b8f1c9e-3f1a-4f0e-8a57-2f6b1f1f0c11"
SMALLEST: dict[str, Any] = {
    "id": ID,
    "type": "OrderCreated",
    "aggregate_id": "ORD-1",
    "data": {"order_id": "ORD-1", "customer_id": "C-1", "amount": 129.9},
    "timestamp": "2026-11-20T22:14:05.123456Z",
    "trace_id": "abc123",
}


def encoded(**changes: Any) -> bytes:
    return json.dumps(SMALLEST | changes).encode()


def without(field: str) -> bytes:
    return json.dumps({name: value for name, value in SMALLEST.items() if name != field}).encode()


def test_every_type_has_its_golden_bytes() -> None:
    assert {path.stem for path in OURS} >= {f"{kind.__name__}.v1" for kind in SUBJECTS}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_released_version_is_still_read(path: Path) -> None:
    envelope = decode(path.read_bytes())
    data = decode_data(envelope, BY_NAME)

    assert type(data).__name__ == envelope.type == path.stem.partition(".")[0]
    identity = data.sku if envelope.type == "StockAdjusted" else data.order_id
    assert identity == envelope.aggregate_id


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_what_is_read_is_written_again_to_the_same_bytes(path: Path) -> None:
    golden = path.read_bytes().rstrip()
    envelope = decode(golden)
    assert isinstance(envelope.version, int)
    cause = envelope.causation_id if isinstance(envelope.causation_id, str) else None
    fact = Fact(envelope.aggregate_id, envelope.version, decode_data(envelope, BY_NAME))

    key, body = seal(
        OWNER_OF[envelope.type],
        fact,
        trace_id=envelope.trace_id,
        causation_id=cause,
        at=envelope.timestamp,
    )

    assert body == golden
    assert str(key) == envelope.id


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_the_six_fields_come_first_and_the_optional_two_last(path: Path) -> None:
    fields = list(json.loads(path.read_bytes()))

    assert fields[:6] == ["id", "type", "aggregate_id", "data", "timestamp", "trace_id"]
    assert fields[6:] in (["version"], ["version", "causation_id"])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_readers_ignore_fields_that_they_do_not_know(path: Path) -> None:
    event = json.loads(path.read_bytes())
    event["data"]["a_field_of_next_year"] = {"deeply": [{"nested": None}]}
    event["another"] = [1, 2.5, "three"]
    for item in event["data"].get("items") or event["data"].get("lines") or []:
        item["gift_wrap"] = True

    newer = decode(json.dumps(event).encode())

    assert decode_data(newer, BY_NAME) == decode_data(decode(path.read_bytes()), BY_NAME)


def test_event_ids_stay_what_they_are() -> None:
    assert uuid.UUID("6f1c0a52-8d0e-5d3b-9a53-1f6c5f0b7e11") == EVENT_NAMESPACE
    assert event_id("orders", "ORD-1", 1) == uuid.UUID("5dc3cb12-7055-5e85-82e5-7af5dab90fa8")
    assert event_id("orders", "ORD-1", 1) == event_id("orders", "ORD-1", 1)
    different = {
        event_id(owner, aggregate, version)
        for owner in ("orders", "payments")
        for aggregate in ("ORD-1", "ORD-2")
        for version in (1, 2)
    }
    assert len(different) == 8


def test_an_id_that_is_no_uuid_has_a_key_of_its_own_always_the_same() -> None:
    ours, foreign, other = (decode(encoded(id=name)) for name in (ID, "order-7", "order-8"))

    assert ours.key == uuid.UUID(ID)
    assert foreign.key == decode(encoded(id="order-7")).key
    assert len({ours.key, foreign.key, other.key}) == 3


def test_six_fields_are_enough() -> None:
    event = decode(encoded())

    assert event.version is UNSET
    assert event.causation_id is UNSET
    assert decode(encoded(version=None, causation_id=None)).version is None


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-11-20T22:14:05Z", datetime(2026, 11, 20, 22, 14, 5, tzinfo=UTC)),
        ("2026-11-20T23:14:05.5+01:00", datetime(2026, 11, 20, 22, 14, 5, 500_000, UTC)),
        ("2026-11-20T22:14:05.123456789Z", datetime(2026, 11, 20, 22, 14, 5, 123_457, UTC)),
        ("2026-11-20t22:14:05-00:00", datetime(2026, 11, 20, 22, 14, 5, tzinfo=UTC)),
    ],
)
def test_any_offset_and_any_fraction_of_a_second_is_read(text: str, instant: datetime) -> None:
    found = decode(encoded(timestamp=text)).timestamp

    assert abs(found - instant) < timedelta(microseconds=1)


NUL = json.dumps(SMALLEST).replace("C-1", "C\\u0000").encode()
GARBAGE = {
    "nothing": b"",
    "spaces": b"   ",
    "a word": b"hello",
    "a number": b"42",
    "null": b"null",
    "a list": b"[]",
    "a string": b'"OrderCreated"',
    "an empty object": b"{}",
    "cut short": encoded()[:-1],
    "two at once": encoded() * 2,
    "bytes": bytes(range(256)),
    "a byte order mark": b"\xef\xbb\xbf" + encoded(),
    "utf-16": json.dumps(SMALLEST).encode("utf-16"),
    "invalid utf-8": encoded(type="X").replace(b'"X"', b'"\xff\xfe"'),
    "a lone surrogate": encoded(trace_id="X").replace(b'"X"', b'"\\ud800"'),
    "an escaped NUL": NUL,
    "a NUL byte": encoded(trace_id="X").replace(b'"X"', b'"\x00"'),
    "NaN as data": encoded(data=float("nan")),
    "deep lists": b"[" * 500_000,
    "deep data": encoded(data="X").replace(b'"X"', b"[" * 200_000 + b"]" * 200_000),
    "deep unknown field": encoded(more="X").replace(
        b'"X"', b'{"a":' * 200_000 + b"1" + b"}" * 200_000
    ),
    "a naive time": encoded(timestamp="2026-11-20T22:14:05"),
    "a day that is none": encoded(timestamp="2026-02-30T00:00:00Z"),
    "an hour that is none": encoded(timestamp="2026-11-20T24:00:00Z"),
    "seconds since 1970": encoded(timestamp=1_700_000_000),
    "an empty id": encoded(id=""),
    "a number as id": encoded(id=7),
    "a long id": encoded(id="x" * (TEXT_CHARACTERS_MAX + 1)),
    "a long trace id": encoded(trace_id="x" * (TEXT_CHARACTERS_MAX + 1)),
    "an empty trace id": encoded(trace_id=""),
    "a long aggregate id": encoded(aggregate_id="x" * (NAME_CHARACTERS_MAX + 1)),
    "an aggregate id with a line break": encoded(aggregate_id="ORD-1\n"),
    "an aggregate id with a space": encoded(aggregate_id="ORD 1"),
    "version zero": encoded(version=0),
    "version huge": encoded(version=2**31),
    "version a float": encoded(version=1.5),
    "version a string": encoded(version="1"),
    **{f"no {field}": without(field) for field in SMALLEST},
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=list(GARBAGE))
def test_garbage_is_poison_with_a_reason(body: bytes) -> None:
    with pytest.raises(Poison) as refused:
        decode(body)

    assert len(str(refused.value)) > 10


BAD_DATA = {
    "another type's": {"sku": "SKU-1", "delta": 1, "reason": "x"},
    "no amount": {"order_id": "ORD-1", "customer_id": "C-1"},
    "a list": [],
    "nothing": None,
    "amount NaN": SMALLEST["data"] | {"amount": "NaN"},
    "amount infinite": SMALLEST["data"] | {"amount": "-Infinity"},
    "amount with too many decimals": SMALLEST["data"] | {"amount": 1.001},
    "amount absurd": SMALLEST["data"] | {"amount": 1e300},
    "amount negative": SMALLEST["data"] | {"amount": -1},
    "amount zero": SMALLEST["data"] | {"amount": 0},
    "amount a word": SMALLEST["data"] | {"amount": "much"},
    "amount a truth": SMALLEST["data"] | {"amount": True},
    "currency unknown": SMALLEST["data"] | {"currency": "XAU"},
    "currency in lower case": SMALLEST["data"] | {"currency": "eur"},
    "quantity zero": SMALLEST["data"] | {"items": [{"sku": "S", "quantity": 0, "unit_price": 1}]},
    "a sku with a space": SMALLEST["data"]
    | {"items": [{"sku": "S S", "quantity": 1, "unit_price": 1}]},
    "too many lines": SMALLEST["data"]
    | {"items": [{"sku": "S", "quantity": 1, "unit_price": 1}] * 101},
}


@pytest.mark.parametrize("data", BAD_DATA.values(), ids=list(BAD_DATA))
def test_data_that_is_no_order_is_poison_with_a_reason(data: object) -> None:
    with pytest.raises(Poison, match=r"not a OrderCreated: .+"):
        decode_data(decode(encoded(data=data)), BY_NAME)


def test_an_unknown_type_is_poison() -> None:
    with pytest.raises(Poison, match="unknown type"):
        decode_data(decode(encoded(type="OrderPainted")), BY_NAME)


def test_invalid_utf_8_in_a_field_that_counts_is_poison() -> None:
    body = encoded(data=SMALLEST["data"] | {"customer_id": "X"}).replace(b'"X"', b'"\xff"')

    with pytest.raises(Poison):
        decode_data(decode(body), BY_NAME)


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_read_or_be_refused(body: bytes) -> None:
    with pytest.raises(Poison):
        decode(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.sampled_from(list(SMALLEST)), JSON)
def test_any_value_in_any_field_is_read_or_refused(field: str, value: object) -> None:
    try:
        decode_data(decode(encoded(**{field: value})), BY_NAME)
    except Poison as refusal:
        text = str(refusal)
        assert text
