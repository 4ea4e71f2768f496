"""Audit's chain and its reading of messages, without a database."""

import hashlib
import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ironcart.services.audit.handlers.chain import (
    digest_of,
    entry_of,
    extend,
    genesis,
    link,
    link_1,
    readable,
)
from ironcart.services.audit.store import Sealed
from ironcart.toolkit.broker import Delivery

ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=40)


def delivery(body: bytes, **fields: Any) -> Delivery:
    values: dict[str, Any] = {
        "stream": "ORDERS",
        "stream_seq": 7,
        "subject": "orders.created",
        "headers": {},
        "delivered": 1,
        "stored_at": 1_790_000_000.5,
        "reply": "",
    }
    return Delivery(body=body, **(values | fields))


def sealed(seq: int) -> Sealed:
    return Sealed(seq, "orders.created", f"id-{seq}", hashlib.sha256(b"%d" % seq).digest())


def test_a_link_is_the_published_formula() -> None:
    body = b'{"id":"e-1","type":"T","aggregate_id":"ORD-1"}'
    entry = entry_of(delivery(body, stream_seq=1, headers={"a": "b"}))
    found = link(genesis("ORDERS"), Sealed(1, "orders.created", "e-1", digest_of(entry)))
    stored = b'orders.created\0e-1\0T\0ORD-1\0{"a":"b"}\x001790000000500000\0' + body
    material = hashlib.sha256(b"ORDERS").digest() + bytes([0, 0, 0, 0, 0, 0, 0, 1])
    assert found == hashlib.sha256(material + hashlib.sha256(stored).digest()).digest()


def test_a_link_of_version_1_is_what_it_always_was() -> None:
    before = hashlib.sha256(b"ORDERS").digest()
    digest = hashlib.sha256(b'{"id":"e-1"}').digest()
    found = link_1(genesis("ORDERS"), Sealed(1, "orders.created", "e-1", digest))
    material = before + bytes([0, 0, 0, 0, 0, 0, 0, 1]) + b"orders.created\0e-1\0"
    assert found == hashlib.sha256(material + digest).digest()


def test_a_chain_stops_at_a_gap() -> None:
    links = extend(0, genesis("ORDERS"), [sealed(1), sealed(2), sealed(4)])
    assert [seq for seq, _ in links] == [1, 2]
    assert extend(2, links[-1][1], [sealed(4), sealed(5)]) == []
    assert [seq for seq, _ in extend(2, links[-1][1], [sealed(3), sealed(4)])] == [3, 4]


def test_an_event_is_known_by_its_names_even_when_it_is_no_valid_event() -> None:
    body = b'{"id":"e-1","type":"OrderCreated","aggregate_id":"ORD-1","data":"nonsense"}'
    entry = entry_of(delivery(body))
    assert (entry.event_id, entry.type, entry.aggregate_id) == ("e-1", "OrderCreated", "ORD-1")


def test_what_cannot_be_read_is_kept_without_names() -> None:
    for body in (
        b"",
        b"not json",
        b"[1, 2]",
        b'{"id":"x","data":"\xff\xfe"}',
        b'{"id":"x","data":NaN}',
        b'{"id":"x"} and more',
        b'{"id":' + b"[" * 100_000,
        b'{"id":{"deep":1},"type":5,"aggregate_id":null}',
        json.dumps({"id": "a\x00b", "type": "\x00", "aggregate_id": "x" * 129}).encode(),
    ):
        entry = entry_of(delivery(body))
        assert (entry.event_id, entry.type, entry.aggregate_id) == ("", "", "")
        assert entry.body == body


@given(
    body=st.binary(max_size=200),
    subject=ANY_TEXT,
    headers=st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3),
)
def test_any_message_becomes_an_entry_that_postgres_takes(
    body: bytes, subject: str, headers: dict[str, str]
) -> None:
    entry = entry_of(delivery(body, subject=subject, headers=headers))
    for text in (entry.subject, entry.event_id, entry.type, entry.aggregate_id, entry.headers):
        assert "\x00" not in text
        text.encode()
    assert isinstance(msgspec.json.decode(entry.headers), dict)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(st.none(), st.integers(), ANY_TEXT)
            for name in ("id", "type", "aggregate_id", "data")
        },
    )
)
def test_names_that_are_read_are_the_names_that_are_there(fields: dict[str, Any]) -> None:
    body = json.dumps(fields).encode()
    entry = entry_of(delivery(body))
    if readable(body) is not None and entry.event_id:
        assert entry.event_id == fields["id"]
