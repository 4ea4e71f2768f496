"""Signatures, keys of refunds, and what the reconciler makes of two ledgers."""

import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

import pytest
import stripe
from msgspec.structs import replace

from ironcart.services.payments.gateway import (
    Gateway,
    OperatorRefunded,
    Seen,
    charges,
    is_signed,
    scan,
)
from ironcart.services.payments.gateway.client import StoredFailure
from ironcart.services.payments.handlers.reconcile import ORPHAN_AGE_S_MIN, judge
from ironcart.services.payments.handlers.refunds import Request, read_refund
from ironcart.services.payments.store import Payment
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.resilience import Breaker

BODY = b'{"id":"evt_1"}'
NOW = 1_700_000_000
HOUR_S = 3_600.0


def v1(secret: str, at: int = NOW, body: bytes = BODY) -> str:
    return hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()


@pytest.mark.parametrize(
    ("header", "fits"),
    [
        (f"t={NOW},v1={v1('a')}", True),
        (f"t={NOW},v1={v1('b')}", True),
        (f"t={NOW}, v1={v1('x')}, v1={v1('a')}, v0=old", True),
        (f"t={NOW - 300},v1={v1('a', NOW - 300)}", True),
        (f"t={NOW - 301},v1={v1('a', NOW - 301)}", False),
        (f"t={NOW + 301},v1={v1('a', NOW + 301)}", False),
        (f"t={NOW},v1={v1('c')}", False),
        (f"t={NOW},v0={v1('a')}", False),
        (f"t={NOW},v1={v1('a', body=BODY + b' ')}", False),
        (f"t={NOW},t={NOW},v1={v1('a')}", False),
        (f"t={NOW},v1={v1('a').upper()}", False),
        (f"t=-{NOW},v1={v1('a')}", False),
        ("t=,v1=", False),
        ("v1=" + v1("a"), False),
        (f"t={NOW}" + f",v1={v1('x')}" * 1_000, False),
        ("é=1,t=²,v1=é", False),
        ("", False),
    ],
)
def test_a_signature_fits_one_of_the_secrets_and_the_time(header: str, fits: bool) -> None:
    assert is_signed(header, BODY, ("a", "b"), NOW) is fits


def test_stripes_own_sdk_signs_what_we_take() -> None:
    header = f"t={NOW},v1={v1('whsec_1')}"

    assert stripe.WebhookSignature.verify_header(BODY.decode(), header, "whsec_1") is True
    assert is_signed(header, BODY, ("whsec_1",), NOW)
    assert not is_signed(header, BODY, (), NOW)


class Stripe:
    """The part of the client that refunds use; `script` says what each send comes to."""

    def __init__(self, *script: Any) -> None:
        self.script, self.refunds = list(script), list[dict[str, Any]]()
        self.keys: list[str] = []

    async def post(self, _path: str, key: str, **params: Any) -> dict[str, Any]:
        self.keys.append(key)
        outcome = self.script.pop(0) if self.script else "done"
        if outcome != "nothing":
            refund = {"status": "succeeded", **params}
            if not isinstance(outcome, StoredFailure | stripe.StripeError):
                self.refunds.append(refund)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome in ("lost", "nothing"):
            raise Unavailable("silence")
        return refund

    async def pages(self, _path: str, **_params: Any) -> AsyncIterator[list[dict[str, Any]]]:
        yield list(self.refunds)


def gateway_on(fake: Stripe) -> Gateway:
    gateway = Gateway("sk_test_1", "", Breaker("gateway"))
    gateway._client = fake  # type: ignore[assignment]
    return gateway


def refusal(code: str) -> Exception:
    kind: Any = stripe.InvalidRequestError
    error: Exception = kind("no", None, code)
    return error


async def test_a_refund_made_again_has_a_key_of_its_own_and_a_look_before_it() -> None:
    fake = Stripe()
    fake.refunds = [{"status": "failed", "amount": 2_000}]
    gateway = gateway_on(fake)
    await gateway.refund("pi_1", 2_000, 0)
    fake.refunds = [{"status": "failed", "amount": 2_000}]
    await gateway.refund("pi_1", 2_000, 0, again=True)
    fake.refunds = [{"status": "failed", "amount": 2_000}] * 2
    await gateway.refund("pi_1", 2_000, 0, again=True)
    fake.refunds = [{"status": "pending", "amount": 2_000}]
    await gateway.refund("pi_1", 2_000, 0, again=True)

    assert len(set(fake.keys)) == len(fake.keys) == 3


async def refund(fake: Stripe, asked_s: float = 0.0, refund_id: str = "a") -> OperatorRefunded:
    reply = await gateway_on(fake).refund_part("pi_1", refund_id, 300, asked_s)
    assert isinstance(reply, OperatorRefunded)
    return reply


async def test_a_refund_whose_answer_was_lost_is_found_and_not_sent_again() -> None:
    fake = Stripe("lost")
    with pytest.raises(Unavailable):
        await refund(fake)

    assert (await refund(fake)).total_minor == 300
    assert len(fake.keys) == 1
    assert (await refund(fake, refund_id="b")).total_minor == 600


async def test_all_sends_of_a_day_share_a_key_and_the_next_day_waits_for_old_requests() -> None:
    fake = Stripe("nothing", "nothing", "nothing")
    for asked_s in (0.0, 22 * HOUR_S):
        with pytest.raises(Unavailable):
            await refund(fake, asked_s)
    with pytest.raises(Unavailable, match="under way") as waiting:
        await refund(fake, 23 * HOUR_S + 60)
    assert waiting.value.retry_after_s == charges.REQUEST_LIFE_S - 60
    with pytest.raises(Unavailable):
        await refund(fake, 23 * HOUR_S + charges.REQUEST_LIFE_S)

    assert fake.keys[0] == fake.keys[1] != fake.keys[2]
    assert len(fake.keys) == 3


async def test_a_key_with_a_failure_in_it_is_left_behind_after_another_look() -> None:
    fake = Stripe(StoredFailure("used up"))
    reply = await refund(fake)

    assert (reply.total_minor, reply.refused) == (300, None)
    assert len(set(fake.keys)) == 2


@pytest.mark.parametrize("code", charges.REFUND_IMPOSSIBLE)
async def test_a_refund_that_can_never_be_made_ends_refused(code: str) -> None:
    reply = await refund(Stripe(refusal(code)))

    assert (reply.total_minor, reply.refused) == (0, code)


async def test_any_other_refusal_is_tried_again() -> None:
    with pytest.raises(Unavailable):
        await refund(Stripe(refusal("api_key_expired")))


async def test_a_reading_is_shared_goes_on_after_an_outage_and_is_renewed_for_later_marks() -> None:
    began: list[str] = []

    async def intents(_since: int, after: str) -> AsyncIterator[list[Seen]]:
        began.append(after)
        if not after:
            yield [replace(PAID, intent_id="pi_2", order_id="ORD-2")]
        if began == [""]:
            raise Unavailable("an outage")
        yield [PAID]

    reading = scan.Scan(intents)
    with pytest.raises(Unavailable):
        await reading.of("ORD-1", 60.0)

    assert await reading.of("ORD-1", 60.0) == [PAID]
    assert [found.intent_id for found in await reading.of("ORD-2", 60.0)] == ["pi_2"]
    assert began == ["", "pi_2"]
    assert await reading.of("ORD-3", 0.0) == []
    assert began == ["", "pi_2", ""]


async def test_a_reading_that_nobody_asks_for_any_more_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def intents(_since: int, after: str) -> AsyncIterator[list[Seen]]:
        yield [PAID]
        if len(reading._by_order) < 2 and not after:
            raise Unavailable("an outage")

    reading = scan.Scan(intents)
    with pytest.raises(Unavailable):
        await reading.of("ORD-1", 60.0)
    reading.forget()
    assert reading._by_order  # It is only interrupted.
    monkeypatch.setattr(scan, "KEPT_UNUSED_S", 0.0)
    reading.forget()
    assert not reading._by_order

    reading._intents = _one_page
    assert await reading.of("ORD-1", 60.0) == [PAID]
    reading.forget()
    assert not reading._by_order
    assert await reading.of("ORD-1", 60.0) == [PAID]


async def _one_page(_since: int, _after: str) -> AsyncIterator[list[Seen]]:
    yield [PAID]


PAID = Seen("pi_1", "ORD-1", "succeeded", 2_000, 2_000, 0, "EUR", "pm_card_visa", 0)
OPEN = replace(PAID, status="requires_confirmation", captured_minor=0)
GONE = replace(OPEN, status="canceled")
OTHER: dict[str, Any] = {"intent_id": "pi_other"}
ROW = Payment("ORD-1", "succeeded", 2_000, "EUR", "pm", "pi_1", 0, 0, None, 1, "t", "", None)
OLD_S, YOUNG_S = ORPHAN_AGE_S_MIN, ORPHAN_AGE_S_MIN - 1


@pytest.mark.parametrize(
    ("intent", "state", "age_s", "kind"),
    [
        (PAID, "succeeded", OLD_S, None),
        (PAID, "charging", OLD_S, None),
        (PAID, "refunding", OLD_S, None),
        (replace(PAID, refunded_minor=5), "op_refunding", OLD_S, None),
        (replace(PAID, refunded_minor=5), "succeeded", OLD_S, "refund_differs follow"),
        (
            replace(PAID, amount_minor=1, captured_minor=1),
            "succeeded",
            OLD_S,
            "amount_differs tell",
        ),
        (replace(PAID, currency="USD"), "succeeded", OLD_S, "amount_differs tell"),
        (PAID, "voided", YOUNG_S, "late_capture follow"),
        (PAID, "failed", YOUNG_S, "late_capture follow"),
        (replace(PAID, refunded_minor=2_000), "voided", OLD_S, None),
        (PAID, None, OLD_S, "captured_for_unknown_order tell"),
        (OPEN, None, OLD_S, None),
        (OPEN, "charging", OLD_S, None),
        (OPEN, "voided", YOUNG_S, None),
        (OPEN, "voided", OLD_S, "orphan cancel"),
        (OPEN, "succeeded", YOUNG_S, "not_captured tell"),
        (GONE, "succeeded", YOUNG_S, "not_captured tell"),
        (GONE, "voided", OLD_S, None),
        (GONE, "charging", OLD_S, None),
        (replace(PAID, **OTHER), "succeeded", OLD_S, "captured_elsewhere tell"),
        (replace(PAID, **OTHER), "charging", YOUNG_S, "captured_elsewhere sweep"),
        (replace(PAID, **OTHER), "voiding", YOUNG_S, "captured_elsewhere sweep"),
        (replace(PAID, **OTHER), "voided", YOUNG_S, "late_capture follow"),
        (replace(PAID, refunded_minor=2_000, **OTHER), "succeeded", OLD_S, None),
        (replace(OPEN, **OTHER), "succeeded", YOUNG_S, None),
        (replace(OPEN, **OTHER), "succeeded", OLD_S, "orphan cancel"),
        (replace(OPEN, **OTHER), "charging", OLD_S, "orphan cancel"),
        (replace(GONE, **OTHER), "succeeded", OLD_S, None),
    ],
)
def test_what_the_two_ledgers_say_of_an_intent(
    intent: Seen, state: str | None, age_s: int, kind: str | None
) -> None:
    found = judge(intent, None if state is None else replace(ROW, state=state), age_s)

    assert (None if found is None else f"{found.kind} {found.repair}") == kind


def test_less_given_back_than_we_told_is_for_a_person_unless_all_was_to_go_back() -> None:
    part = judge(PAID, replace(ROW, refunded_minor=500), 0)
    whole = judge(PAID, replace(ROW, state="refunded", refunded_minor=2_000), 0)

    assert part is not None
    assert whole is not None
    assert (part.kind, part.repair) == ("refund_differs", "tell")
    assert (whole.kind, whole.repair) == ("refund_differs", "follow")


def test_a_refund_keeps_its_id_when_the_database_forgets_its_key() -> None:
    def request(body: bytes, key: str | None, fallback_id: str) -> Request:
        read = read_refund(body)
        assert isinstance(read, tuple)
        return Request("ORD-1", *read, "anonymous", key, fallback_id)

    first, again = request(b'{"amount":5}', "k", "x"), request(b'{"amount":5.00}', "k", "y")
    other, without = request(b'{"amount":6}', "k2", "x"), request(b"{}", None, "z")

    assert (first.refund_id, first.fingerprint) == (again.refund_id, again.fingerprint)
    assert other.refund_id != first.refund_id
    assert other.fingerprint != first.fingerprint
    assert without.refund_id == "z"
