"""What of a caller's tracestate travels with our events."""

import pytest

from ironcart.toolkit.telemetry import context

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def state(text: str) -> str:
    return context({"traceparent": PARENT, "tracestate": text}).state


@pytest.mark.parametrize(
    "text",
    [
        "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        "fw529a3039@dt=FfA;2;3",
        "ot=th:8",
        "a=1, b=2 ",
        "0a/b*c-d_e=!~",
    ],
)
def test_what_w3c_says_travels_on_as_it_came(text: str) -> None:
    assert state(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "who=anna@shop.example",
        "anna@shop.example=1",
        "who=anna%40shop.example",
        "Anna=1",
        "who=",
        "=1",
        "who",
        "a=b=c",
        "who=Zoë",
        "who=a\tb",
        "who=a\n",
    ],
)
def test_an_address_and_what_is_no_tracestate_do_not(text: str) -> None:
    assert state(text) == ""
    assert state(f"a=1,{text},b=2") == "a=1,b=2"
