"""The ledger alone: what an intent may do, and that money never moves twice."""

from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ironcart.embedded.sandbox.cards import VERDICTS, Verdict
from ironcart.embedded.sandbox.ledger import Ledger, LedgerBrokenError
from ironcart.embedded.sandbox.records import Attempt, Change, Draft, Intent, Refund, Refused

NOW = 1_800_000_000.0


def issue(payment_method: str) -> Verdict:
    return VERDICTS[payment_method]


@pytest.fixture
def ledger() -> Ledger:
    return new_ledger()


def new_ledger() -> Ledger:
    numbers = count(1)
    return Ledger(lambda prefix: f"{prefix}_{next(numbers)}")


def intent_in(change: Change) -> Intent:
    assert change.intent is not None
    return change.intent


def create(ledger: Ledger, payment_method: str | None = "pm_card_visa") -> Intent:
    change = ledger.create(Draft(1000, "eur", payment_method), NOW, issue)
    ledger.admit(change)
    return intent_in(change)


def confirm(ledger: Ledger, intent: Intent, attempt: Attempt | None = None) -> Change:
    change = ledger.confirm(intent.id, attempt or Attempt(), NOW, issue)
    ledger.admit(change)
    return change


def test_a_confirmed_intent_has_captured_its_amount_once(ledger: Ledger) -> None:
    intent = create(ledger)
    assert (intent.status, intent.captured) == ("requires_confirmation", 0)

    paid = intent_in(confirm(ledger, intent))
    again = confirm(ledger, paid)

    assert (paid.status, paid.captured) == ("succeeded", 1000)
    assert again.failure is not None
    assert again.failure.code == "payment_intent_unexpected_state"
    assert ledger.intent(intent.id) == paid


def test_an_intent_without_a_payment_method_asks_for_one(ledger: Ledger) -> None:
    intent = create(ledger, None)
    assert intent.status == "requires_payment_method"

    refused = confirm(ledger, intent)
    paid = confirm(ledger, intent, Attempt("pm_card_mastercard"))

    assert refused.failure is not None
    assert refused.failure.code == "payment_intent_unexpected_state"
    assert intent_in(paid).status == "succeeded"


def test_a_declined_intent_can_be_tried_with_another_card(ledger: Ledger) -> None:
    intent = create(ledger, "pm_card_chargeDeclinedInsufficientFunds")

    declined = confirm(ledger, intent)
    paid = confirm(ledger, intent, Attempt("pm_card_visa"))

    assert declined.failure is not None
    assert (declined.failure.status, declined.failure.decline_code) == (402, "insufficient_funds")
    assert intent_in(declined).status == "requires_payment_method"
    assert intent_in(declined).payment_method is None
    assert intent_in(paid).captured == 1000
    assert intent_in(paid).charge_id != intent_in(declined).charge_id


def test_a_card_that_needs_action_waits_or_is_declined_when_nobody_is_there(
    ledger: Ledger,
) -> None:
    intent = create(ledger, "pm_card_authenticationRequired")

    waiting = confirm(ledger, intent)
    declined = confirm(ledger, intent, Attempt(no_action=True))

    assert waiting.failure is None
    assert intent_in(waiting).status == "requires_action"
    assert declined.failure is not None
    assert declined.failure.code == "authentication_required"
    assert intent_in(declined).captured == 0


def test_a_canceled_intent_takes_no_money(ledger: Ledger) -> None:
    intent = create(ledger)
    ledger.admit(ledger.cancel(intent.id, "requested_by_customer", NOW))

    refused = confirm(ledger, intent)
    again = ledger.cancel(intent.id, None, NOW)

    assert refused.failure is not None
    assert again.failure is not None
    assert refused.failure.code == again.failure.code == "payment_intent_unexpected_state"
    assert ledger.intent(intent.id).captured == 0


def test_a_succeeded_intent_cannot_be_canceled(ledger: Ledger) -> None:
    intent = create(ledger)
    confirm(ledger, intent)

    refused = ledger.cancel(intent.id, None, NOW)

    assert refused.failure is not None
    assert refused.failure.code == "payment_intent_unexpected_state"


def test_refunds_add_up_to_the_capture_and_no_further(ledger: Ledger) -> None:
    intent = create(ledger)
    confirm(ledger, intent)

    ledger.admit(ledger.give_back(intent.id, 300, NOW))
    too_much = ledger.give_back(intent.id, 701, NOW)
    rest = ledger.give_back(intent.id, None, NOW)
    ledger.admit(rest)
    none_left = ledger.give_back(intent.id, None, NOW)

    assert too_much.failure is not None
    assert too_much.failure.code == "amount_too_large"
    assert rest.refund is not None
    assert rest.refund.amount == 700
    assert none_left.failure is not None
    assert none_left.failure.code == "charge_already_refunded"
    assert ledger.intent(intent.id).refunded == 1000


def test_an_intent_that_took_nothing_has_nothing_to_refund(ledger: Ledger) -> None:
    intent = create(ledger)

    assert ledger.give_back(intent.id, None, NOW).failure is not None


def test_pages_run_from_the_newest_to_the_oldest(ledger: Ledger) -> None:
    ids = [create(ledger).id for _ in range(5)]

    first, more = ledger.page_of_intents(2, None)
    second, still_more = ledger.page_of_intents(2, first[-1].id)
    last, none_left = ledger.page_of_intents(2, second[-1].id)

    assert [intent.id for intent in (*first, *second, *last)] == ids[::-1]
    assert (more, still_more, none_left) == (True, True, False)


def test_an_unknown_cursor_or_intent_is_refused(ledger: Ledger) -> None:
    asks: list[Callable[[], object]] = [
        lambda: ledger.page_of_intents(1, "pi_x"),
        lambda: ledger.page_of_refunds(None, 1, "re_x"),
        lambda: ledger.intent("pi_x"),
        lambda: ledger.refund("re_x"),
        lambda: ledger.confirm("pi_x", Attempt(), NOW, issue),
        lambda: ledger.cancel("pi_x", None, NOW),
        lambda: ledger.give_back("pi_x", None, NOW),
    ]
    for ask in asks:
        with pytest.raises(Refused, match="No such"):
            ask()


def test_a_change_that_moves_money_twice_is_never_admitted(ledger: Ledger) -> None:
    intent = create(ledger)
    stale = ledger.confirm(intent.id, Attempt(), NOW, issue)
    ledger.admit(stale)
    paid = intent_in(stale)
    refund = Refund("re_9", 0, paid.id, "ch_1", 600, "eur", int(NOW))
    ledger.admit(Change(NOW, replace(paid, refunded=600), refund))
    written: list[Change] = []
    broken = [
        stale,  # would forget the refund
        Change(NOW, replace(paid, refunded=1200), replace(refund, id="re_10", seq=1)),
        Change(NOW, replace(paid, refunded=600), replace(refund, id="re_10", seq=1)),
        Change(NOW, replace(paid, refunded=1200), refund),
        Change(NOW, replace(paid, refunded=600, attempts=2)),
        Change(NOW, replace(paid, refunded=600, status="canceled")),
        Change(NOW, replace(paid, refunded=600, amount=900, captured=900)),
        Change(NOW, replace(paid, refunded=600, captured=2000)),
        Change(NOW, replace(paid, refunded=600, status="requires_confirmation", captured=0)),
        Change(NOW, replace(intent, id="pi_other", seq=7)),
        Change(NOW, replace(intent, id="pi_other", seq=1, refunded=1)),
        Change(NOW, replace(intent, id="pi_other", seq=1, captured=1000)),
        Change(NOW, None, refund),
    ]
    for change in broken:
        with pytest.raises(LedgerBrokenError):
            ledger.admit(change, written.append)

    assert written == []
    assert ledger.intent(intent.id) == replace(paid, refunded=600)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("confirm"), st.sampled_from([None, *sorted(VERDICTS)])),
            st.tuples(st.just("cancel"), st.none()),
            st.tuples(st.just("refund"), st.one_of(st.none(), st.integers(1, 1200))),
        ),
        max_size=12,
    )
)
def test_whatever_is_asked_money_moves_once_each_way(
    asks: list[tuple[str, str | int | None]],
) -> None:
    ledger = new_ledger()
    intent = create(ledger)
    captures = 0
    for ask, argument in asks:
        before = ledger.intent(intent.id)
        if ask == "confirm":
            method = argument if isinstance(argument, str) else None
            change = ledger.confirm(intent.id, Attempt(method), NOW, issue)
        elif ask == "cancel":
            change = ledger.cancel(intent.id, None, NOW)
        else:
            amount = argument if isinstance(argument, int) else None
            change = ledger.give_back(intent.id, amount, NOW)
        ledger.admit(change)
        captures += before.captured == 0 and ledger.intent(intent.id).captured > 0
    after = ledger.intent(intent.id)
    refunds, _ = ledger.page_of_refunds(intent.id, 100, None)
    assert captures == (1 if after.status == "succeeded" else 0)
    assert sum(refund.amount for refund in refunds) == after.refunded <= after.captured
