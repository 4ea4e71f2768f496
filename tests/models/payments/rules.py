"""What must hold of a payment: of our row, of the gateway's books, and of what was told."""

from collections.abc import Iterator, Sequence
from functools import cache

from ironcart.events import PaymentRefunded, RefundIssued, minor_units
from ironcart.services.payments.store import Payment
from ironcart.toolkit.outcomes import Fact
from models.payments.service import AMOUNT_MINOR, ENDED
from models.payments.stripe_side import Intent

NOT_PAID = frozenset({"failed", "voided", "refunded"})
NO_CHARGE = frozenset({"PaymentFailed", "PaymentVoided"})
TOLD = {
    "succeeded": "PaymentSucceeded",
    "failed": "PaymentFailed",
    "voided": "PaymentVoided",
    "refunded": "PaymentRefunded",
}
OFTEN = "RefundIssued"  # An operator may give several parts back.


def broken(row: Payment | None, intents: Sequence[Intent], told: tuple[Fact, ...]) -> Iterator[str]:
    """Rules for every moment."""
    if len([intent for intent in intents if intent.status == "succeeded"]) > 1:
        yield "charged twice"
    if any(len(set(each.refunds)) < len(each.refunds) for each in intents):
        yield "one refund made twice"
    if row is not None and row.state in NOT_PAID and any(intent.kept for intent in intents):
        yield f"{row.state}, and the gateway holds money"
    yield from broken_story(told)


def broken_end(
    row: Payment | None, intents: Sequence[Intent], told: tuple[Fact, ...]
) -> Iterator[str]:
    """Rules for when nothing is under way any more."""
    if row is None or row.state not in ENDED:
        yield f"stuck: {'none' if row is None else row.state}"
        return
    kept = sum(intent.kept for intent in intents)
    owed = AMOUNT_MINOR - row.refunded_minor if row.state == "succeeded" else 0
    if kept != owed:
        yield f"{row.state}, and the gateway holds {kept} instead of {owed}"
    if TOLD[row.state] not in names_of(told):
        yield f"{row.state}, and nobody was told"
    given_back = sum(intent.amount - intent.kept for intent in intents if intent.refunds)
    if told_back(told) != given_back:
        yield f"{row.state}, {given_back} were given back, {told_back(told)} told"


@cache
def broken_story(told: tuple[Fact, ...]) -> tuple[str, ...]:
    """What is wrong with what the world was told."""
    names = names_of(told)
    story, found = " ".join(names), []
    once = [name for name in names if name != OFTEN]
    if len(set(once)) < len(once):
        found.append(f"a fact told twice: {story}")
    if len({fact.version for fact in told}) < len(told):
        found.append(f"two facts under one id: {story}")
    no_charge = NO_CHARGE & set(names)
    if len(no_charge) > 1 or (no_charge and "PaymentSucceeded" in names):
        found.append(f"facts that contradict each other: {story}")
    if told_back(told) > AMOUNT_MINOR:
        found.append(f"more told to be given back than was taken: {story}")
    return tuple(found)


def names_of(told: tuple[Fact, ...]) -> list[str]:
    """The types of facts, in order."""
    return [type(fact.data).__name__ for fact in told]


def told_back(told: tuple[Fact, ...]) -> int:
    """The minor units that the world was told went back."""
    return sum(
        minor_units(fact.data.amount, fact.data.currency)
        for fact in told
        if isinstance(fact.data, RefundIssued | PaymentRefunded)
    )
