"""Payments' own code against a gateway, over every interleaving within a budget of faults."""

from functools import cache

import pytest

from models.explorer import NO_END, Report, explore
from models.payments import runs
from models.payments.variants import VARIANTS, variant

ENDS = {"succeeded", "failed", "voided", "refunded"}
# The rule that each variant breaks, at the end of the shortest schedule.
BROKEN = {
    "a one-shot charge with a key per attempt": "charged twice",
    "a one-shot charge whose key is pruned": "charged twice",
    "a create key without a generation": NO_END,
    "PaymentFailed at the decline": "failed, and the gateway holds money",
    "PaymentVoided at once": "voided, and the gateway holds money",
    "settling without the lease": "voided, and the gateway holds money",
    "an operator's refund without a look": "one refund made twice",
    # What the service rests on: a request is over long before its key is forgotten.
    "an operator's refund that is under way when its key is pruned": "one refund made twice",
    "restored, without a look at the gateway": "voided, and the gateway holds money",
    "restored, without folding what had been told": (
        "a fact told twice: PaymentVoided PaymentVoided"
    ),
    "restored, with the leases of before": "the code of the job raises AssertionError: ",
}


RUNS = {protocol.name: protocol for protocol in runs.small()}


@cache
def explored(name: str) -> Report:
    return explore(RUNS[name])


@pytest.mark.parametrize("name", RUNS)
def test_every_interleaving_charges_once_tells_the_truth_and_comes_to_an_end(name: str) -> None:
    report = explored(name)

    assert report.complete
    assert not report.broken, str(report)
    assert set(report.ends) <= ENDS


def test_every_end_is_reached() -> None:
    ends = {end for name in RUNS for end in explored(name).ends}

    assert ends == ENDS


def test_every_variant_is_expected_to_break_something() -> None:
    assert set(BROKEN) == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_rule_that_is_left_out_is_missed(name: str) -> None:
    report = explore(variant(name), first_only=True)

    assert BROKEN[name] in report.broken, str(report)
