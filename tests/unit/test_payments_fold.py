"""Payments' table from its own facts, also where the first of them was lost with the database."""

from pathlib import Path

import pytest

from ironcart.events import KINDS
from ironcart.services.payments.fold import fold_one, state_after
from ironcart.services.payments.handlers.table import TABLE
from ironcart.toolkit.recovery import OwnFact, own_fact

KINDS_LOST_BEFORE = ("PaymentRefunded", "RefundIssued", "PaymentVoided", "PaymentFailed")
STATES = {state for state, _ in TABLE} - {"none"}


def fact(kind: str) -> OwnFact:
    body = (Path(__file__).parent / "golden" / f"{kind}.v1.json").read_bytes()
    subject = next(subject for subject, each in KINDS.items() if each.__name__ == kind)
    found = own_fact(KINDS, subject, body, 7)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS_LOST_BEFORE)
def test_a_row_made_from_a_later_fact_alone_is_one_that_the_table_takes(kind: str) -> None:
    row = fold_one(None, fact(kind))
    assert row.state in STATES
    assert row.version == fact(kind).version


@pytest.mark.parametrize("before", sorted(STATES | {"none"}))
@pytest.mark.parametrize("kind", KINDS_LOST_BEFORE)
def test_no_fact_leads_out_of_the_table(before: str, kind: str) -> None:
    assert state_after(before, fact(kind).data) in STATES
