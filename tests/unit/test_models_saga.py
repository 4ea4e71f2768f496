"""One order through the tables of three services, over every interleaving."""

import pytest

from models.explorer import explore
from models.saga import story
from models.saga.mutants import DEFECTS, UNOBSERVABLE, active, caught, ends, ignored, reached
from models.saga.tables import Tables

STATUSES = {"confirmed", "rejected", "cancelled"}


@pytest.mark.parametrize("saga", [*story.small()], ids=lambda saga: saga.name)
def test_every_interleaving_comes_to_one_end_with_stock_and_money_where_they_belong(
    saga: story.Saga,
) -> None:
    report = explore(saga)

    assert report.complete
    assert not report.broken, str(report)


@pytest.mark.parametrize("by_http", [True, False])
def test_every_end_is_reached(by_http: bool) -> None:
    found = ends(by_http=by_http)

    assert {end.split("/")[0].split("_")[0] for end in found} == STATUSES
    assert {"confirmed/succeeded/2", "confirmed/succeeded/1", "cancelled_back/refunded/0"} <= found


def test_most_of_what_the_tables_do_is_used() -> None:
    assert len(reached().intersection(active())) >= 2 / 3 * len(active())


@pytest.mark.parametrize("over", DEFECTS.values(), ids=DEFECTS.keys())
def test_a_plausible_mistake_in_a_table_is_noticed(over: Tables) -> None:
    assert caught(over) is not None


def test_an_entry_that_does_nothing_is_noticed_unless_nobody_could() -> None:
    unnoticed = {entry for entry, over in ignored() if caught(over) is None}

    assert unnoticed == set(UNOBSERVABLE)
