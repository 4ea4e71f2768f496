"""Reading what is on the wire: exact money, ids of any form, and bytes that are nobody's event."""

import json
import uuid
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ironcart.services.audit.handlers.chain import entry_of
from ironcart.toolkit.broker import Delivery
from ironcart.verify.chain import Entry, is_named_right
from ironcart.verify.facts import CannotReadError
from ironcart.verify.loadlog import read_logs
from ironcart.verify.rundata import read_run
from ironcart.verify.wire import (
    MalformedError,
    basket_of,
    basket_of_body,
    key_of,
    lines_of,
    loads,
    minor,
    read_event,
)

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
FIELDS = ("id", "type", "aggregate_id", "data", "timestamp", "trace_id", "version", "causation_id")
TYPES = st.sampled_from(["OrderCreated", "StockReserved", "StockCommitted", "StockAdjusted"])
DATA = st.dictionaries(
    st.sampled_from(["amount", "currency", "customer_id", "items", "lines", "delta"]), ANY_JSON
)


@pytest.mark.parametrize(
    ("amount", "currency", "expected"),
    [("39.98", "EUR", 3998), ("129.9", "EUR", 12990), ("5", "JPY", 5), ("0.01", "USD", 1)],
)
def test_money_is_read_exactly(amount: str, currency: str, expected: int) -> None:
    assert minor(loads(amount), currency) == expected


@pytest.mark.parametrize(
    ("amount", "currency"),
    [
        ("0.001", "EUR"),
        ("1.5", "JPY"),
        ("1", "XXX"),
        ("true", "EUR"),
        ('"1"', "EUR"),
        ("1E+99", "EUR"),
    ],
)
def test_money_that_is_not_exact_is_refused(amount: str, currency: str) -> None:
    with pytest.raises(MalformedError):
        minor(loads(amount), currency)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_json_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a JSON number"):
        loads(text)


def test_an_id_is_the_same_however_a_uuid_is_spelled() -> None:
    known = uuid.uuid4()

    assert key_of(str(known)) == key_of(str(known).upper()) == key_of(known.hex) == known.bytes
    assert len(key_of("order-17")) == 16
    assert key_of("order-17") != key_of("order-18")
    assert key_of("") == b""


def test_equal_skus_add_up() -> None:
    items = [{"sku": "B", "quantity": 1}, {"sku": "A", "quantity": 2}, {"sku": "B", "quantity": 3}]

    assert lines_of(items) == (("A", 2), ("B", 4))


def test_a_basket_is_the_same_in_any_order_of_its_lines_and_in_no_other_way() -> None:
    one = {"sku": "A", "quantity": 1, "unit_price": Decimal("1.10")}
    two = {"sku": "B", "quantity": 2, "unit_price": Decimal("2.00")}
    body = {"customer_id": "C", "currency": "EUR", "items": [one, two]}

    assert basket_of_body(body) == basket_of("C", (510, "EUR"), [two, one])
    assert basket_of_body(body) != basket_of("D", (510, "EUR"), [two, one])
    assert basket_of_body(body) != basket_of("C", (511, "EUR"), [two, one])
    assert basket_of_body(body) != basket_of("C", (510, "EUR"), [two, one | {"quantity": 2}])


@given(st.binary())
def test_no_bytes_make_the_reader_raise(body: bytes) -> None:
    assert read_event("ORDERS", 1, "orders.created", body).seq == 1


# A busy machine is no reason to fail.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, ANY_JSON)))
def test_no_json_makes_the_reader_raise(fields: dict[str, object]) -> None:
    assert read_event("ORDERS", 1, "orders.created", json.dumps(fields).encode()).seq == 1


@given(TYPES, DATA)
def test_data_that_is_not_as_promised_is_a_flaw_and_no_error(
    kind: str, data: dict[str, object]
) -> None:
    fields = {"id": "1", "type": kind, "aggregate_id": "A", "timestamp": "t", "data": data}

    event = read_event("ORDERS", 1, "x", json.dumps(fields).encode())

    assert event.seq == 1


@pytest.mark.parametrize("name", ["id", "type", "aggregate_id", "causation_id"])
@pytest.mark.parametrize("text", ["\\u0000", "\\ud800", "a\\nb"])
def test_text_that_no_database_or_terminal_takes_makes_no_reader_raise(
    name: str, text: str
) -> None:
    names = dict.fromkeys(("id", "type", "aggregate_id", "timestamp"), "x")
    body = json.dumps({"data": {}, **names, name: "HERE"}).replace("HERE", text).encode()

    event = read_event("ORDERS", 1, "orders.created", body)

    event.type.encode()
    event.aggregate.encode()


@pytest.mark.parametrize(
    "written",
    [
        '"plain"',
        '"0af76519-16cd-43dd-8448-eb211c80319c"',
        '"\\u0000"',
        '"a\\u0000b"',
        '"a\\\\u0000b"',
        '"\\ud800"',
        '"\\uD83D\\uDE00"',
        '""',
        f'"{"x" * 128}"',
        f'"{"x" * 129}"',
        "5",
        "null",
    ],
)
def test_audit_and_verify_read_the_same_id_whatever_is_written(written: str) -> None:
    names = '"type":"T","aggregate_id":"A","timestamp":"t","trace_id":"x","data":{}'
    for body in (
        f'{{"id":{written},{names}}}',
        f'{{{names},"other":{written},"id":"x"}}',
        f'\ufeff{{"id":{written},{names}}}',
        f'{{"id":{written},{names}}} {{}}',
    ):
        delivery = Delivery("ORDERS", 1, "orders.created", body.encode(), {}, 1, 0.0, "")

        audited = entry_of(delivery).event_id

        assert read_event("ORDERS", 1, "orders.created", body.encode()).id == key_of(audited)


def test_garbage_is_no_event_but_keeps_its_id() -> None:
    event = read_event("ORDERS", 1, "orders.created", b'{"id": "x", "type": 5}')

    assert not event.valid
    assert event.id == key_of("x")


def test_a_last_line_that_a_crash_cut_off_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "load").mkdir()
    path = tmp_path / "load" / "a.jsonl"
    path.write_text('{"kind": "run", "key_prefix": "load-"}\n{"kind": "sent", "ke')

    log = read_logs(tmp_path)

    assert log.prefixes == ["load-"]
    assert log.attempts == {}


def test_a_spoiled_line_within_a_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "load").mkdir()
    (tmp_path / "load" / "a.jsonl").write_text('{"kind": "sent"\n{}\n')

    with pytest.raises(CannotReadError, match=r"a\.jsonl:1: "):
        read_logs(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"nats": {}}'])
def test_a_run_json_that_is_none_is_said_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(CannotReadError, match="does not exist: start the system with"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(CannotReadError, match=r"is not a run\.json"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"\xff",
        b"[]",
        b"{}",
        b'{"id": "1", "type": "A", "aggregate_id": "B"}',
        b'{"id": "1", "type": 7, "aggregate_id": "a\\u0000"}',
        b'{"id": "1", "type": "A", "type": "B", "aggregate_id": null}',
        b'{"id": "1", "type": "A", "aggregate_id": "\\ud800"}',
        b'{"id": "1", "type": "A", "data": NaN}',
        b'{"id": "1", "type": "A", "data": 1e99999}',
        b'{"id": 1e999, "type": "A"}',
        b'{"type": 1e999, "id": ""}',
        b'{"id": "1", "type": "A", "data": ' + b"9" * 5_000 + b"}",
        b'{"id": "1", "type": "A", "data": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"id": "1", "type": "A", "data": ' + b"[" * 9_000 + b"]" * 9_000 + b"}",
        b'{"id": "1", "type": "' + b"A" * 128 + b'", "aggregate_id": "' + b"A" * 129 + b'"}',
        b'\xef\xbb\xbf{"id": "1", "type": "A"}',
    ],
)
def test_names_that_audit_has_read_are_right_whatever_the_body(body: bytes) -> None:
    kept = entry_of(Delivery("ORDERS", 1, "orders.created", body, {}, 1, 0.0, ""))
    names = (kept.type, kept.aggregate_id)

    def entry(kind: str, aggregate_id: str) -> Entry:
        return Entry("ORDERS", 1, kept.subject, kept.event_id, body, b"", 1, kind, aggregate_id)

    assert is_named_right(entry(*names))
    assert names != ("", "") or not is_named_right(entry("PaymentFailed", "ORD-NOBODY"))
