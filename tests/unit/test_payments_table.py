"""What a payment does about what it hears, beyond the orders of arrival."""

from itertools import product
from typing import Any, cast

import pytest
from msgspec.structs import replace

from ironcart.events import OrderCancellationRequested
from ironcart.services.payments.gateway import (
    Canceled,
    Created,
    Found,
    OperatorRefunded,
    Refunded,
    Seen,
    Succeeded,
    Swept,
)
from ironcart.services.payments.handlers import (
    EVENTS,
    JOBS,
    TABLE,
    OperatorRefundAsked,
    learn,
    step,
)
from ironcart.services.payments.handlers.charging import Charging, Told, take_in
from ironcart.services.payments.handlers.webhooks import intent_of, is_news
from ironcart.services.payments.store import Payment
from ironcart.toolkit.outcomes import Fact, Unavailable

CANCEL = OrderCancellationRequested("ORD-1", "customer", "customer")


def payment(state: str, **changes: Any) -> Payment:
    row = Payment(
        order_id="ORD-1",
        state=state,
        amount_minor=2_000,
        currency="EUR",
        payment_method="pm_card_visa",
        intent_id="pi_1",
        generation=0,
        refunded_minor=0,
        decline_code=None,
        version=1,
        trace_id="t",
        traceparent="",
        causation_id=None,
    )
    return replace(row, **changes)


def seen(status: str = "succeeded", **changes: Any) -> Seen:
    captured = 2_000 if status == "succeeded" else 0
    found = Seen("pi_1", "ORD-1", status, 2_000, captured, 0, "EUR", "pm_card_visa", 0)
    return replace(found, **changes)


def told(fact: Fact | None) -> tuple[str, int] | None:
    """A fact's type and its amount in minor units."""
    return None if fact is None else (type(fact.data).__name__, int(fact.data.amount * 100))


def test_the_table_is_total() -> None:
    states = {state for state, _ in TABLE}

    assert set(TABLE) == set(product(states, EVENTS))
    assert states > JOBS


def test_each_refund_of_an_operator_is_told_once_with_its_own_amount() -> None:
    row, said = payment("succeeded"), []
    for refund_id, units, total in (("a", 500, 500), ("b", 1_500, 2_000)):
        row, fact = step(row, OperatorRefundAsked(refund_id, units))
        assert (row.state, fact, row.refund_id) == ("op_refunding", None, refund_id)
        row, fact = learn(row, OperatorRefunded(total))
        said.append(told(fact))
        again, nothing = learn(row, OperatorRefunded(total))
        assert (again, nothing) == (row, None)

    assert said == [("RefundIssued", 500), ("RefundIssued", 1_500)]
    assert (row.state, row.refunded_minor, row.version) == ("succeeded", 2_000, 3)


def test_a_refund_that_was_refused_tells_nothing_and_ends() -> None:
    row, _ = step(payment("succeeded"), OperatorRefundAsked("a", 500))
    row, fact = learn(row, OperatorRefunded(0, "charge_disputed"))

    assert (row.state, row.refunded_minor, fact) == ("succeeded", 0, None)


def test_a_cancellation_during_a_refund_gives_the_rest_back() -> None:
    row, _ = step(payment("succeeded"), OperatorRefundAsked("a", 500))
    row, _ = step(row, CANCEL)
    assert row.state == "op_then_refund"
    row, issued = learn(row, OperatorRefunded(500))
    row, returned = learn(row, Refunded())

    assert told(issued) == ("RefundIssued", 500)
    assert told(returned) == ("PaymentRefunded", 1_500)
    assert (row.state, row.refunded_minor) == ("refunded", 2_000)


@pytest.mark.parametrize("state", sorted({state for state, _ in TABLE} - {"succeeded"}))
def test_only_a_payment_that_succeeded_is_refunded_by_an_operator(state: str) -> None:
    assert TABLE[state, OperatorRefundAsked] == state


def test_a_refund_made_elsewhere_is_told_once() -> None:
    row, fact = learn(payment("succeeded", looking=True), Found(seen(refunded_minor=700)))
    again, nothing = learn(row, Found(seen(refunded_minor=700)))

    assert told(fact) == ("RefundIssued", 700)
    assert (row.state, row.refunded_minor, row.looking) == ("succeeded", 700, False)
    assert (again, nothing) == (row, None)


@pytest.mark.parametrize("state", ["failed", "voided"])
def test_a_late_capture_is_sent_back_by_its_own_intent(state: str) -> None:
    tombstone = {"amount_minor": None, "currency": None, "payment_method": None}
    blank = tombstone if state == "voided" else {}
    row, fact = learn(payment(state, intent_id=None, **blank), Found(seen(intent_id="pi_2")))

    assert (row.state, row.intent_id, row.amount_minor) == ("refunding", "pi_2", 2_000)
    assert fact is None


@pytest.mark.parametrize(
    "state", sorted({state for state, _ in TABLE} - {"succeeded", "failed", "voided"})
)
def test_looking_changes_nothing_about_any_other_state(state: str) -> None:
    row = payment(state)

    assert learn(row, Found(seen(refunded_minor=2_000))) == (row, None)
    assert learn(row, Found(None)) == (row, None)


def test_money_that_was_to_go_back_and_did_not_is_sent_again_and_told_once() -> None:
    row, returned = learn(payment("refunding"), Refunded())
    failed, nothing = learn(replace(row, looking=True), Found(seen(refunded_minor=0)))
    again, nothing_more = learn(failed, Refunded())

    assert told(returned) == ("PaymentRefunded", 2_000)
    assert (failed.state, failed.refunded_minor, failed.looking) == ("refunding", 0, False)
    assert (again.state, again.refunded_minor, again.version) == ("refunded", 2_000, row.version)
    assert again == row
    assert (nothing, nothing_more) == (None, None)


def test_an_intent_that_is_not_ours_says_nothing_of_what_went_back() -> None:
    row = payment("refunded", refunded_minor=2_000)

    assert learn(row, Found(seen(intent_id="pi_2"))) == (row, None)


def test_a_refund_of_what_operators_have_given_back_already_is_told_all_the_same() -> None:
    row, fact = learn(payment("refunding", refunded_minor=2_000), Refunded())

    assert (row.state, told(fact)) == ("refunded", ("PaymentRefunded", 0))


async def test_a_refund_that_failed_is_made_again_as_another_one() -> None:
    asked: list[dict[str, Any]] = []

    class Till:
        async def refund(self, *_: Any, **how: Any) -> Refunded:
            asked.append(how)
            return Refunded()

    work = Charging(cast("Any", Till()), Told(lambda _row, _age_s: None, lambda *_: None))
    await work.call(payment("refunding"), 0)
    await work.call(payment("refunding", refunding_minor=2_000), 0)

    assert [each["again"] for each in asked] == [False, True]


def test_a_swept_order_takes_on_what_was_captured_or_begins_anew() -> None:
    row = payment("charging", intent_id=None, recovering=True)
    paid, fact = learn(row, Swept(seen(intent_id="pi_9"), 3))
    anew, nothing = learn(row, Swept(None, 3))

    assert (paid.state, paid.intent_id, paid.recovering) == ("succeeded", "pi_9", False)
    assert told(fact) == ("PaymentSucceeded", 2_000)
    assert (anew.state, anew.intent_id, anew.recovering) == ("charging", None, False)
    assert anew.generation > 3
    assert nothing is None


def test_while_recovering_one_cancelled_intent_closes_no_door() -> None:
    row = payment("voiding", recovering=True)

    assert learn(row, Canceled()) == (row, None)


def test_an_answer_about_another_intent_than_the_rows_is_no_answer() -> None:
    row = payment("charging", intent_id=None)
    after, fact = take_in(row, payment("charging", intent_id="pi_1"), Succeeded())

    assert (after.state, after.recovering, fact) == ("charging", True, None)
    assert take_in(row, row, Created("pi_2"))[0].intent_id == "pi_2"


async def test_an_intent_that_was_cancelled_is_made_again_after_a_pause() -> None:
    gateway: Any = None  # Nobody is called.
    work = Charging(gateway, Told(lambda _row, _age_s: None, lambda *_: None))
    with pytest.raises(Unavailable) as paused:
        await work.call(payment("charging", intent_id=None, generation=3), 0)

    assert paused.value.retry_after_s
    assert paused.value.retry_after_s > 0.1


def test_a_webhook_is_news_unless_it_says_what_an_ended_payment_says() -> None:
    assert not is_news(payment("succeeded"), "payment_intent.succeeded")
    assert not is_news(payment("voided"), "payment_intent.canceled")
    assert not is_news(payment("charging"), "payment_intent.succeeded")  # Its job looks anyway.
    assert is_news(payment("voided"), "payment_intent.succeeded")
    assert is_news(payment("failed"), "payment_intent.succeeded")
    assert is_news(payment("succeeded"), "charge.refunded")


@pytest.mark.parametrize(
    ("about", "intent_id"),
    [
        ({"object": "payment_intent", "id": "pi_1"}, "pi_1"),
        ({"object": "charge", "id": "ch_1", "payment_intent": "pi_1"}, "pi_1"),
        ({"object": "refund", "payment_intent": None}, None),
        ({"object": "payment_intent", "id": 7}, None),
        ({"object": "payment_intent", "id": "a\0b"}, None),
        ({"object": "payment_intent", "id": ""}, None),
        ({}, None),
    ],
)
def test_of_a_webhooks_object_only_the_intents_id_is_read(
    about: dict[str, Any], intent_id: str | None
) -> None:
    assert intent_of(about) == intent_id
