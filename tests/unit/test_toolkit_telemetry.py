"""Trace context: what comes in is taken on, or a new trace begins; nothing odd travels further."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironcart.toolkit.telemetry import TraceContext, context, hex_trace_id

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_traceparent_is_taken_on_whatever_the_case_of_its_name() -> None:
    found = context({"Traceparent": PARENT, "TraceState": "vendor=1"}, "something else")

    assert found == TraceContext(TRACE, SPAN, True, "vendor=1")
    assert found.traceparent == PARENT


@pytest.mark.parametrize(
    "header",
    [
        "",
        "garbage",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
    ],
)
def test_what_is_no_traceparent_begins_a_new_span_in_the_events_trace(header: str) -> None:
    found = context({"traceparent": header, "tracestate": "vendor=1"}, TRACE)

    assert found.trace_id == TRACE
    assert re.fullmatch("[0-9a-f]{16}", found.span_id)
    assert not found.sampled
    assert not found.state


def test_with_nothing_at_all_a_new_trace_begins() -> None:
    assert context({}).trace_id != context({}).trace_id


@pytest.mark.parametrize("state", ["caf\u00e9=1", "a=\x00", "a=1\r\nNats-Msg-Id: x"])
def test_a_tracestate_that_no_header_can_carry_is_dropped(state: str) -> None:
    found = context({"traceparent": PARENT, "tracestate": state})

    assert (found.trace_id, found.state) == (TRACE, "")


def test_a_long_tracestate_is_cut() -> None:
    long = ",".join(["vendor=0123456"] * 500)
    kept = context({"traceparent": PARENT, "tracestate": long}).state

    assert 512 - len("vendor=0123456") <= len(kept) <= 512
    assert long.startswith(kept)


def test_a_proper_trace_id_is_used_as_it_is() -> None:
    assert hex_trace_id(TRACE) == TRACE


@given(st.text(min_size=1, max_size=128, alphabet=st.characters(codec="utf-8")))
def test_any_other_trace_id_becomes_one_always_the_same(odd: str) -> None:
    found = hex_trace_id(odd)

    assert re.fullmatch("[0-9a-f]{32}", found)
    assert found == hex_trace_id(odd)


@pytest.mark.parametrize("odd", ["0" * 32, TRACE.upper(), TRACE + "\n", TRACE + "0"])
def test_what_only_looks_like_a_trace_id_is_hashed(odd: str) -> None:
    assert re.fullmatch("[0-9a-f]{32}", hex_trace_id(odd))
    assert hex_trace_id(odd) != odd
