"""I11 sees what does not finish, or too late; I12 counts what the defences did."""

from pathlib import Path

from ironcart.verify.facts import Facts
from ironcart.verify.metrics import samples_of
from verify_judge import TERMINAL_WITHIN_S, examine, faults_of
from verify_world import clean_world

PAGE = """\
# HELP ironcart_outcomes_total what became of messages
# TYPE ironcart_outcomes_total counter
ironcart_outcomes_total{consumer="payments/ORDERS",outcome="duplicate"} 7.0
ironcart_outcomes_total{consumer="payments/INVENTORY",outcome="duplicate"} 2.0
ironcart_outcomes_total{consumer="payments/ORDERS",outcome="done"} 40.0
ironcart_breaker_state{breaker="gateway",state="open"} 1.0
ironcart_breaker_state{breaker="gateway",state="closed"} 0.0
"""


def test_what_is_overdue_or_old_is_a_fault(tmp_path: Path) -> None:
    def age(facts: Facts) -> None:
        facts.leftovers.overdue_jobs = {"payments": 3}
        facts.leftovers.unpublished_age_s = {"orders": 61.0, "audit": 5.0}

    assert faults_of(clean_world(), tmp_path, "I11", change=age) == {
        "jobs overdue that nobody works on": 3,
        "committed long ago, not published": 1,
    }


def test_orders_that_end_too_late_are_a_fault(tmp_path: Path) -> None:
    def ended(most_s: float) -> dict[str, int]:
        def change(facts: Facts) -> None:
            facts.ended_within_s = (0.1, most_s, 60.0)

        return faults_of(clean_world(), tmp_path, "I11", change=change)

    assert ended(TERMINAL_WITHIN_S) == {}
    assert ended(TERMINAL_WITHIN_S + 1) == {"99 in 100 orders ended within 6.0 s, not 5 s": 1}


def test_an_open_breaker_is_a_fault_where_calls_wait(tmp_path: Path) -> None:
    def broken(jobs: int) -> dict[str, int]:
        def change(facts: Facts) -> None:
            facts.metrics = {"payments": samples_of(PAGE)}
            facts.leftovers.jobs = {"payments": jobs}

        return faults_of(clean_world(), tmp_path, "I11", change=change)

    assert broken(0) == {}
    assert broken(1) == {"a breaker is open while calls wait": 1}


def test_what_the_defences_did_is_counted(tmp_path: Path) -> None:
    def ask(facts: Facts) -> None:
        facts.metrics = {"payments": samples_of(PAGE)}

    found = examine(clean_world(), tmp_path, change=ask)["I12"]

    assert found.ok
    assert found.figures["duplicates absorbed"] == 9
    assert found.figures["handled"] == 40
    assert found.figures["services asked"] == 1
