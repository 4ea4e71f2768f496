"""What a handler reads of a request: headers, and a body that has a limit."""

from collections.abc import Sequence
from typing import Any

import pytest

from ironcart.toolkit.http import Problem
from ironcart.toolkit.http.routes import BODY_BYTES_MAX, Call

GONE = {"type": "http.disconnect"}


def part(body: bytes, *, last: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": not last}


def call(*messages: dict[str, Any], headers: Sequence[tuple[bytes, bytes]] = ()) -> Call:
    """A request whose server says these messages, and nothing after them."""
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(left)

    return Call({"type": "http", "headers": headers}, receive)


async def test_a_body_in_parts_is_read_whole_and_once() -> None:
    request = call(part(b"{"), part(b""), part(b"}", last=True))
    assert await request.body() == b"{}"
    assert await request.body() == b"{}"


async def test_a_body_at_the_limit_is_read_and_one_past_it_is_a_413() -> None:
    whole = part(b" " * BODY_BYTES_MAX)
    assert len(await call(whole, part(b"", last=True)).body()) == BODY_BYTES_MAX
    with pytest.raises(Problem) as refused:
        await call(whole, part(b" ", last=True)).body()
    assert refused.value.status == 413


async def test_a_body_that_breaks_off_is_a_400() -> None:
    with pytest.raises(Problem) as refused:
        await call(part(b"{"), GONE).body()
    assert refused.value.status == 400


def test_of_a_header_that_comes_twice_the_first_counts_and_both_can_be_had() -> None:
    request = call(headers=[(b"prefer", b"a"), (b"prefer", b"b")])
    assert request.headers.get("prefer") == "a"
    assert request.all_of("prefer") == ["a", "b"]
    assert request.all_of("accept") == []
