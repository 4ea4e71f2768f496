"""Back-off and the breaker, by a clock of our own."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironcart.toolkit.outcomes import Poison, Unavailable
from ironcart.toolkit.resilience import (
    FAILURES_BEFORE_OPEN_MAX,
    OPEN_S,
    Backoff,
    Breaker,
    BreakerOpen,
    BreakerState,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Gateway:
    """A breaker in front of something that does as it is told."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.changes: list[tuple[str, str]] = []
        self.breaker = Breaker("gateway", clock=self.clock, on_change=self._note)

    @property
    def state(self) -> str:
        return self.breaker.state.value

    def _note(self, name: str, before: BreakerState, after: BreakerState) -> None:
        assert name == "gateway"
        self.changes.append((before, after))

    def succeed(self, times: int = 1) -> None:
        for _ in range(times):
            with self.breaker.guard():
                pass

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(Unavailable, match="down"), self.breaker.guard():
                raise Unavailable("down")

    def decline(self) -> None:
        with pytest.raises(Poison), self.breaker.guard():
            raise Poison("an answer that is an error")

    def cancel(self) -> None:
        with pytest.raises(asyncio.CancelledError), self.breaker.guard():
            raise asyncio.CancelledError

    def open(self) -> None:
        self.fail(FAILURES_BEFORE_OPEN_MAX + 1)
        assert self.state == "open"


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def test_five_failures_in_a_row_leave_it_closed_and_the_sixth_opens_it(gateway: Gateway) -> None:
    gateway.fail(5)
    assert gateway.state == "closed"

    gateway.fail()
    assert gateway.state == "open"
    assert gateway.changes == [("closed", "open")]


def test_while_open_no_call_is_made_and_the_wait_is_told(gateway: Gateway) -> None:
    gateway.open()
    gateway.clock.now += 10

    with pytest.raises(BreakerOpen, match="gateway is open") as told, gateway.breaker.guard():
        pytest.fail("the call was made")
    assert told.value.retry_after_s == pytest.approx(OPEN_S - 10)
    assert gateway.breaker.wait_s() == pytest.approx(OPEN_S - 10)


def test_refused_calls_do_not_keep_it_open_longer(gateway: Gateway) -> None:
    gateway.open()
    gateway.clock.now += OPEN_S - 1
    with pytest.raises(BreakerOpen), gateway.breaker.guard():
        pytest.fail("the call was made")

    gateway.clock.now += 1
    assert gateway.breaker.wait_s() == 0


def test_a_success_between_failures_starts_the_count_again(gateway: Gateway) -> None:
    gateway.fail(5)
    gateway.succeed()
    gateway.fail(5)

    assert gateway.state == "closed"


def test_an_answer_that_is_an_error_starts_the_count_again(gateway: Gateway) -> None:
    gateway.fail(5)
    gateway.decline()
    gateway.fail(5)

    assert gateway.state == "closed"


def test_cancelled_calls_count_neither_as_failure_nor_as_success(gateway: Gateway) -> None:
    for _ in range(20):
        gateway.cancel()
    assert gateway.state == "closed"

    gateway.fail(5)
    gateway.cancel()
    gateway.fail()
    assert gateway.state == "open"


def test_one_probe_is_let_through_at_a_time(gateway: Gateway) -> None:
    gateway.open()
    gateway.clock.now += OPEN_S

    with gateway.breaker.guard():
        assert gateway.state == "half_open"
        assert gateway.breaker.wait_s() > 0
        with pytest.raises(BreakerOpen), gateway.breaker.guard():
            pytest.fail("a second probe")
    assert gateway.state == "closed"
    assert gateway.changes == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]


def test_a_probe_that_fails_opens_it_for_the_whole_time_again(gateway: Gateway) -> None:
    gateway.open()
    gateway.clock.now += OPEN_S
    gateway.fail()

    assert gateway.state == "open"
    assert gateway.breaker.wait_s() == pytest.approx(OPEN_S)


def test_a_probe_that_is_cancelled_leaves_the_next_caller_to_probe(gateway: Gateway) -> None:
    gateway.open()
    gateway.clock.now += OPEN_S
    gateway.cancel()

    assert gateway.state == "half_open"
    assert gateway.breaker.wait_s() == 0
    gateway.succeed()
    assert gateway.state == "closed"


def test_a_probe_that_is_answered_with_an_error_closes_it(gateway: Gateway) -> None:
    gateway.open()
    gateway.clock.now += OPEN_S
    gateway.decline()

    assert gateway.state == "closed"


def test_outcomes_of_calls_from_before_the_last_change_are_dropped(gateway: Gateway) -> None:
    late_success, late_failure = gateway.breaker.guard(), gateway.breaker.guard()
    late_success.__enter__()
    late_failure.__enter__()
    gateway.open()

    late_success.__exit__(None, None, None)
    assert gateway.state == "open"

    gateway.clock.now += OPEN_S
    with gateway.breaker.guard():
        error = Unavailable("down, but long ago")
        assert not late_failure.__exit__(type(error), error, None)
        assert gateway.state == "half_open"
    assert gateway.state == "closed"
    gateway.fail(5)
    assert gateway.state == "closed"


@given(st.lists(st.sampled_from(["ok", "fail", "decline", "cancel"]), max_size=60))
def test_while_closed_it_opens_exactly_after_six_failures_that_nothing_interrupts(
    calls: list[str],
) -> None:
    gateway = Gateway()
    in_a_row = 0
    for call in calls:
        match call:
            case "ok":
                gateway.succeed()
                in_a_row = 0
            case "decline":
                gateway.decline()
                in_a_row = 0
            case "cancel":
                gateway.cancel()
            case _:
                gateway.fail()
                in_a_row += 1
        opened = gateway.state == "open"
        assert opened == (in_a_row > FAILURES_BEFORE_OPEN_MAX)
        if opened:
            return


@given(st.integers(1, 10_000))
def test_a_pause_lies_between_a_tenth_of_its_ceiling_and_the_ceiling(attempt: int) -> None:
    backoff = Backoff(first_s=0.5, max_s=60.0)
    ceiling_s = min(60.0, 0.5 * 2 ** min(attempt - 1, 30))

    assert ceiling_s / 10 <= backoff.delay_s(attempt) <= ceiling_s


def test_pauses_differ_so_that_failures_do_not_come_back_together() -> None:
    assert len({Backoff().delay_s(8) for _ in range(100)}) > 90
