"""What the broker is told about a message, for every outcome."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironcart.toolkit.broker import Delivery
from ironcart.toolkit.loop.verdicts import Ack, Nak, Term, judge
from ironcart.toolkit.outcomes import Done, Park, Retry
from ironcart.toolkit.resilience import Backoff

BACKOFF = Backoff(attempts_max=8, first_s=0.5, max_s=60.0)
DELIVERY = Delivery("ORDERS", 7, "orders.created", b"{}", {}, 1, 0.0, "$JS.ACK.reply")


def test_done_is_acked() -> None:
    assert judge(DELIVERY, "OrderCreated", Done(), 0, BACKOFF) == Ack(DELIVERY, "done")


def test_done_after_failures_is_acked_all_the_same() -> None:
    assert judge(DELIVERY, "OrderCreated", Done(), 99, BACKOFF) == Ack(DELIVERY, "done")


def test_parked_is_terminated_with_its_reason() -> None:
    assert judge(DELIVERY, "OrderCreated", Park("why"), 3, BACKOFF) == Term(
        DELIVERY, "OrderCreated", "why", "why", 3
    )


@given(st.integers(1, 7))
def test_a_retry_waits_as_long_as_the_back_off_says(attempts: int) -> None:
    verdict = judge(DELIVERY, "OrderCreated", Retry("later"), attempts, BACKOFF)

    assert isinstance(verdict, Nak)
    ceiling_s = min(60.0, 0.5 * 2 ** (attempts - 1))
    assert ceiling_s / 10 <= verdict.delay_s <= ceiling_s


def test_a_retry_with_a_delay_of_its_own_waits_that_long() -> None:
    assert judge(DELIVERY, "X", Retry("later", 3.5), 1, BACKOFF) == Nak(DELIVERY, 3.5)
    assert judge(DELIVERY, "X", Retry("later", 0.0), 1, BACKOFF) == Nak(DELIVERY, 0.0)


@pytest.mark.parametrize("delay_s", [None, 3.5])
def test_the_last_attempt_is_the_eighth_then_the_message_is_exhausted(
    delay_s: float | None,
) -> None:
    retry = Retry("still no", delay_s)

    assert isinstance(judge(DELIVERY, "X", retry, 7, BACKOFF), Nak)
    assert judge(DELIVERY, "X", retry, 8, BACKOFF) == Term(
        DELIVERY, "X", "exhausted after 8 attempts", "still no", 8
    )
