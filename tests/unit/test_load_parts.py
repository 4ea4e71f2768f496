"""Exact prices, honest percentiles, a log that is written first, and a plan that makes sense."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from ironcart.load.basket import Basket, other_body, write_body
from ironcart.load.figures import Tally, percentile
from ironcart.load.log import LoadLog
from ironcart.load.plan import InvalidPlanError, Plan, Target, find_target

TARGET = Target("http://127.0.0.1:1", None)


def test_prices_are_written_with_exactly_two_decimals() -> None:
    body = json.loads(write_body(7, {"A": 1, "B": 2}, [100, 1905]), parse_float=Decimal)

    assert [str(item["unit_price"]) for item in body["items"]] == ["1.00", "19.05"]
    assert body["customer_id"] == "LOAD-C00007"
    assert body["currency"] == "EUR"
    assert body["email"] == "load-7@shop.example"


def test_orders_spread_over_customers_and_skus_with_one_to_three_lines() -> None:
    basket = Basket("r", customers=50, skus=10, seed=1)
    orders = [basket.next() for _ in range(500)]
    bodies = [json.loads(order.body) for order in orders]

    assert {len(body["items"]) for body in bodies} == {1, 2, 3}
    assert len({body["customer_id"] for body in bodies}) == 50
    assert len({item["sku"] for body in bodies for item in body["items"]}) == 10
    assert len({order.key for order in orders}) == 500
    assert all(
        order.lines == {item["sku"]: item["quantity"] for item in body["items"]}
        for order, body in zip(orders, bodies, strict=True)
    )


def test_the_same_seed_draws_the_same_orders_under_other_keys() -> None:
    one, two = (Basket(run, customers=9, skus=9, seed=4) for run in "ab")
    first, second = one.next(), two.next()

    assert first.body == second.body
    assert first.key != second.key


def test_a_shop_with_one_sku_can_be_loaded_too() -> None:
    assert list(Basket("r", customers=1, skus=1, seed=1).next().lines) == ["LOAD-0001"]


def test_the_other_body_is_valid_and_different() -> None:
    body = Basket("r", customers=1, skus=1, seed=1).next().body

    changed = json.loads(other_body(body))

    assert changed != json.loads(body)
    assert changed["items"][0]["quantity"] >= 11


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 5), (90, 9), (95, 10), (99, 10), (100, 10), (1, 1)]
)
def test_percentiles_are_by_nearest_rank(percent: float, expected: int) -> None:
    assert percentile(list(range(1, 11)), percent) == expected


def test_the_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 99) == 0


def test_confirmed_a_second_is_from_the_first_accept_to_the_last_end() -> None:
    tally = Tally(accepted=10, sending_s=2, first_created_at=100, last_updated_at=104)
    tally.statuses["confirmed"] = 8

    assert tally.per_second() == (5, 2)
    assert tally.as_json()["not_terminal"] == 2
    assert "not terminal 2" in tally.lines()[-1]


def test_a_line_of_the_log_is_in_the_file_when_write_returns(tmp_path: Path) -> None:
    log = LoadLog(tmp_path / "load")
    log.write({"kind": "sent", "key": "k"})

    assert json.loads(log.path.read_text()) == {"kind": "sent", "key": "k"}
    log.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "say how much: --rate N, --orders N or both"),
        ({"rate": -1}, "rate cannot be negative"),
        ({"orders": 1, "skus": 0}, "skus must be at least 1"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_in_one_line(
    options: dict[str, int], message: str
) -> None:
    with pytest.raises(InvalidPlanError, match=message):
        Plan(target=TARGET, log_folder=Path(), **options)


def test_the_target_is_read_from_run_json(tmp_path: Path) -> None:
    services = {"orders": {"url": "http://a:1/"}, "inventory": {"url": "http://b:2"}}
    (tmp_path / "run.json").write_text(json.dumps({"services": services}))

    assert find_target(tmp_path, None, None) == Target("http://a:1", "http://b:2")
    assert find_target(tmp_path, "http://c:3/", None) == Target("http://c:3", None)


@pytest.mark.parametrize("text", ["", "{}", '{"services": []}'])
def test_a_run_json_that_is_none_is_said_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidPlanError, match="does not exist: start the system with"):
        find_target(tmp_path, None, None)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InvalidPlanError, match=r"is not a run\.json"):
        find_target(tmp_path, None, None)
