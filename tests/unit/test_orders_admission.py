"""Who may place an order now, and when to come back: decided without asking anybody."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from ironcart.services.orders.api import Changes, Door, Doorstep
from ironcart.services.orders.api import following as follow
from ironcart.services.orders.handlers.admit import (
    BUSY_LAG_S,
    GIVE_WAY_S_MAX,
    Limits,
    Load,
    give_way,
    refusal,
)
from ironcart.toolkit.collector import Collector, Forecast
from ironcart.toolkit.http import Caller, Problem, Scope
from ironcart.toolkit.http.access import ANONYMOUS
from ironcart.toolkit.http.problems import retry_after
from ironcart.toolkit.outcomes import LostRace, Unavailable

SHOP = Caller("key:shop", Scope.STOREFRONT)
LIMITS = Limits()
FINE = Load(in_hand=LIMITS.in_hand - 1, of_caller=9, commit_wait_s=0.9, open_orders=999_999)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, None),
        ({"open_orders": 1_000_000}, (503, "backlog")),
        ({"in_hand": LIMITS.in_hand}, (503, "in_hand")),
        ({"of_caller": LIMITS.in_hand // 2}, (429, "caller")),
        ({"commit_wait_s": 1.1, "of_caller": 499, "in_hand": 499}, (503, "commit_wait")),
        (
            {"commit_wait_s": 1.1, "of_caller": 499, "in_hand": 600, "callers": 2},
            (503, "commit_wait"),
        ),
        ({"commit_wait_s": 1.9, "of_caller": 100, "in_hand": 600, "callers": 2}, None),
        ({"commit_wait_s": 1.9, "of_caller": 0, "in_hand": 3, "callers": 9}, None),
        ({"commit_wait_s": 2.1, "of_caller": 0}, (503, "commit_wait")),
        ({"stream_fill": 0.949}, None),
        ({"stream_fill": 0.95}, (503, "stream_full")),
        ({"away_s": 0.0}, (503, "database")),
        ({"away_s": 9.0, "of_caller": 10_000}, (503, "database")),
    ],
    ids=str,
)
def test_an_order_is_refused_for_what_is_short_and_for_nothing_else(
    change: dict[str, Any], found: tuple[int, str] | None
) -> None:
    said = refusal(replace(FINE, **change), LIMITS)

    assert (said and (said.status, said.reason)) == found
    assert said is None or "with the same Idempotency-Key" in said.detail


@pytest.mark.parametrize(("expected_s", "range_s"), [(0, (1, 1)), (4, (4, 8)), (1e9, (30, 30))])
def test_when_to_come_back_follows_the_forecast_with_jitter_and_within_limits(
    expected_s: float, range_s: tuple[int, int]
) -> None:
    drawn = {int(retry_after(expected_s)["Retry-After"]) for _ in range(200)}

    assert min(drawn) >= range_s[0]
    assert max(drawn) <= range_s[1]
    assert len(drawn) > 1 or range_s[0] == range_s[1]


def test_a_forecast_is_the_batches_ahead_times_what_recent_ones_took() -> None:
    forecast = Forecast()
    for start in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0):
        forecast.end(forecast.begin(start), start + 1.0)
    assert forecast.wait_s(5, 1, 7.0) == 0.0, "nothing runs, so it may begin at once"
    forecast.begin(7.0)

    assert forecast.wait_s(5, 1, 7.5) == pytest.approx(0.5 + 5.0, abs=0.1)
    assert forecast.wait_s(4, 2, 7.5) == pytest.approx(0.5 + 2.0, abs=0.1)
    assert forecast.wait_s(1, 1, 17.0) == pytest.approx(20.0), "one that hangs, hangs on"


def test_a_forecast_counts_what_kept_the_process_from_the_next_batch() -> None:
    forecast = Forecast()
    since = forecast.begin(0.0)
    forecast.end(since, 1.0)
    # It came while the first ran, and was through 4 s after the first was.
    forecast.end(forecast.begin(0.5), 5.0)
    forecast.begin(5.0)

    assert forecast.wait_s(1, 1, 5.0) == pytest.approx(2 * (0.5 / 2 + 4 / 2))


async def hang(_: Sequence[int]) -> list[int]:
    await asyncio.Event().wait()
    raise AssertionError


async def test_what_waits_too_long_is_given_up_and_never_committed() -> None:
    begun: list[int] = []
    go_on = asyncio.Event()

    async def commit(items: Sequence[int]) -> list[int]:
        begun.extend(items)
        await go_on.wait()
        return list(items)

    collector = Collector(commit, batch_max=1, wait_s_max=0.05)
    running = asyncio.ensure_future(collector.run())
    first = asyncio.ensure_future(collector.submit(1))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="waited too long"):
        await collector.submit(2)
    taken_back = asyncio.ensure_future(collector.submit(3))
    await asyncio.sleep(0)
    taken_back.cancel()
    go_on.set()

    assert await first == 1, "its batch had begun: it hears the truth"
    assert await collector.submit(4) == 4
    assert begun == [1, 4]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_who_is_in_a_hurry_is_not_told_what_becomes_of_a_batch_that_goes_on() -> None:
    through: list[int] = []
    go_on = asyncio.Event()

    async def commit(items: Sequence[int]) -> list[int]:
        await go_on.wait()
        through.extend(items)
        return list(items)

    collector = Collector(commit, batch_max=2, wait_s_max=0.05)
    running = asyncio.ensure_future(collector.run())
    patient = asyncio.ensure_future(collector.submit(1))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await collector.submit(2, hurried=True)
    go_on.set()

    assert await patient == 1
    assert through == [1, 2], "it was committed all the same"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def door(limits: Limits = LIMITS, doorstep: Doorstep | None = None) -> Door:
    places: Any = Collector(hang, batch_max=1)
    return Door(places, doorstep or Doorstep(), limits)


def enter(at: Door, caller: str = "a") -> Any:
    found = at.enter(caller)
    return found.status if isinstance(found, Problem) else found


def test_one_caller_may_have_half_of_the_places_and_gets_them_back_once() -> None:
    at = door(Limits(in_hand=4))
    tickets = [enter(at), enter(at)]
    assert enter(at) == 429
    others = [enter(at, "b"), enter(at, "c")]
    assert enter(at, "d") == 503
    for ticket in (tickets[0], tickets[0], others[0]):
        ticket.leave()

    assert enter(at, "a") not in (429, 503)
    assert enter(at, "a") == 429


def test_while_the_database_is_away_one_order_in_a_while_is_let_through() -> None:
    at = door()
    at.failed(LostRace("run it again"))
    assert enter(at) != 503
    at.failed(Unavailable("away"))
    assert enter(at) == 503
    at._probe_at = 0.0
    probe = enter(at)
    assert probe != 503
    assert enter(at) == 503, "one probe at a time"
    at.committed()
    assert enter(at) != 503


def test_followers_are_woken_by_what_another_replica_changed_and_only_then() -> None:
    changes = Changes()
    with changes.following("A", SHOP) as a, changes.following("B", SHOP) as b:
        changes.compare({"A": (1, "pending"), "B": (1, "pending")})
        a.clear()
        b.clear()
        changes.compare({"A": (1, "reserved"), "B": (1, "pending")})
        assert (a.is_set(), b.is_set()) == (True, False)
        assert changes.followed == ["A", "B"]
    assert changes.followed == []


def test_there_is_a_limit_to_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "FOLLOWERS_MAX", 1)
    changes = Changes()
    with changes.following("A", SHOP):
        assert changes.full
        assert changes.full_for(ANONYMOUS)
    assert not changes.full


def test_one_storefront_has_a_quarter_of_the_followers_places_and_operators_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follow, "FOLLOWERS_MAX", 8)
    changes = Changes()
    with ExitStack() as places:
        for _ in range(2):
            assert not changes.full_for(SHOP)
            places.enter_context(changes.following("A", SHOP))
        assert changes.full_for(SHOP)
        for _ in range(6):
            assert not changes.full_for(Caller("key:other", Scope.STOREFRONT))
            assert not changes.full_for(ANONYMOUS)
            places.enter_context(changes.following("A", ANONYMOUS))
        assert changes.full
    assert not changes.full_for(SHOP)


def test_accepting_gives_way_more_and_more_while_the_machine_is_busy_and_fewer_end() -> None:
    wait_s = 0.0
    for _ in range(3):
        before, wait_s = wait_s, give_way(wait_s, lag_s=2 * BUSY_LAG_S, accepted=200, ended=100)
        assert wait_s > before
    for _ in range(20):
        wait_s = give_way(wait_s, lag_s=1.0, accepted=200, ended=0)
    assert wait_s == GIVE_WAY_S_MAX


@pytest.mark.parametrize(
    ("lag_s", "accepted", "ended"), [(0.001, 200, 0), (1.0, 90, 100), (1.0, 0, 0)]
)
def test_accepting_goes_on_when_more_end_or_when_they_wait_for_something_else(
    lag_s: float, accepted: int, ended: int
) -> None:
    wait_s = GIVE_WAY_S_MAX
    for _ in range(100):
        wait_s = give_way(wait_s, lag_s=lag_s, accepted=accepted, ended=ended)
    assert wait_s < 0.01


async def test_a_collector_rests_before_each_batch_for_as_long_as_it_is_told() -> None:
    loop, rest_s, began = asyncio.get_running_loop(), 0.5, list[float]()

    async def commit(items: Sequence[int]) -> Sequence[int]:
        began.append(loop.time())
        return items

    collector: Collector[int, int] = Collector(commit, batch_max=10, rest_s=lambda: rest_s)
    running = asyncio.create_task(collector.run())
    asked = loop.time()
    assert await collector.submit(1) == 1
    assert began[0] - asked >= rest_s
    rest_s = 0.0
    asked = loop.time()
    await collector.submit(2)
    assert began[1] - asked < 0.5
    running.cancel()
