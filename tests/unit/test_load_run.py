"""Load runs against a shop in this process: pace, retries, the log, stock and the end of orders."""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import typer
from typer.testing import CliRunner

from ironcart.cli.load import load as command
from ironcart.embedded.certificates import issue
from ironcart.load import pace, sender, shelf, watch
from ironcart.load.figures import Tally
from ironcart.load.plan import Plan, Target
from ironcart.load.run import run
from ironcart.load.shelf import STOCK_LOW, STOCK_TARGET, Shelf
from ironcart.toolkit.tls import Tls
from ironcart.verify.loadlog import read_logs
from load_shop import LoadShop, serving


@pytest.fixture
async def shop(unused_tcp_port: int) -> AsyncIterator[LoadShop]:
    async with serving(LoadShop(), unused_tcp_port) as serves:
        yield serves


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for between looks and tries is no part of these tests."""
    monkeypatch.setattr(sender, "RETRY_DELAY_S", 0.001)
    monkeypatch.setattr(watch, "SETTLE_POLL_S", 0.01)
    monkeypatch.setattr(watch, "POLL_S", 0.01)


async def _load(shop: LoadShop, folder: Path, **options: Any) -> Tally:
    settled = {"settle_s": 5, "skus": 5, **options}
    inventory = settled.pop("inventory_url", None)
    plan = Plan(target=Target(shop.url, inventory), log_folder=folder / "load", **settled)
    return await run(plan, tell=lambda _: None, quiet=True)


async def test_every_order_is_placed_once_and_followed_to_its_end(
    shop: LoadShop, tmp_path: Path
) -> None:
    tally = await _load(shop, tmp_path, orders=230, connections=8)

    assert len(shop.orders) == 230
    assert (tally.accepted, tally.terminal, tally.statuses["confirmed"]) == (230, 230, 230)
    assert len(tally.accept_s) == 230
    assert tally.as_json()["terminal_ms"] == {"p50": 250.0, "p95": 250.0, "p99": 250.0}


async def test_a_run_with_a_rate_places_orders_by_the_clock(shop: LoadShop, tmp_path: Path) -> None:
    tally = await _load(shop, tmp_path, rate=200, duration_s=0.5)

    assert tally.sent == tally.accepted == 100
    assert tally.sending_s >= 0.49


async def test_arrivals_do_not_wait_for_answers(shop: LoadShop, tmp_path: Path) -> None:
    gate = asyncio.Event()
    shop.gates.append(gate)
    async with asyncio.TaskGroup() as group:
        loaded = group.create_task(_load(shop, tmp_path, rate=500, duration_s=0.2))
        await shop.until(lambda: len(shop.posts) >= 100)
        gate.set()

    assert loaded.result().accepted == 100


async def test_a_late_answer_counts_from_the_moment_the_order_was_due(
    shop: LoadShop, tmp_path: Path
) -> None:
    shop.answer_delay_s = 0.2

    tally = await _load(shop, tmp_path, rate=50, duration_s=0.2)

    assert min(tally.accept_s) >= 0.2


async def test_what_cannot_be_sent_in_time_is_counted(
    shop: LoadShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "IN_FLIGHT_MAX", 5)
    shop.answer_delay_s = 0.5

    tally = await _load(shop, tmp_path, rate=100, duration_s=0.3)

    assert tally.sent == 5
    assert tally.not_sent == 25


async def test_a_number_of_orders_is_placed_whole_and_lateness_is_counted(
    shop: LoadShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "IN_FLIGHT_MAX", 2)
    monkeypatch.setattr(pace, "LATE_AFTER_S", 0.02)
    shop.answer_delay_s = 0.05

    tally = await _load(shop, tmp_path, rate=1_000, orders=10)

    assert (tally.sent, tally.not_sent, tally.terminal) == (10, 0, 10)
    assert tally.late > 0


async def test_a_request_is_in_the_log_before_it_arrives(shop: LoadShop, tmp_path: Path) -> None:
    missing = []

    def arrived(key: str) -> None:
        (path,) = (tmp_path / "load").iterdir()
        if f'"key":"{key}"' not in path.read_text():
            missing.append(key)

    shop.arrived = arrived
    await _load(shop, tmp_path, orders=20)

    assert missing == []


@pytest.mark.parametrize("fault", ["503", "reset", "500", "429"])
async def test_a_request_without_an_answer_is_sent_again_under_its_key(
    shop: LoadShop, tmp_path: Path, fault: str
) -> None:
    shop.fault = lambda _key, attempt: fault if attempt < 3 else ""

    tally = await _load(shop, tmp_path, orders=5)

    assert tally.accepted == 5
    assert tally.retries == 10
    assert len(shop.orders) == 5
    log = read_logs(tmp_path)
    assert [attempt.sends for attempt in log.attempts.values()] == [3] * 5
    assert all(attempt.basket for attempt in log.attempts.values())


async def test_retries_are_bounded_and_the_outcome_is_then_unknown(
    shop: LoadShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "ATTEMPTS_MAX", 4)
    shop.fault = lambda _key, _attempt: "503"

    tally = await _load(shop, tmp_path, orders=3)

    assert tally.unknown == 3
    assert len(shop.posts) == 12


async def test_a_refusal_is_not_tried_again(shop: LoadShop, tmp_path: Path) -> None:
    shop.fault = lambda _key, _attempt: "400"

    tally = await _load(shop, tmp_path, orders=3)

    assert tally.refused == Counter({"400": 3})
    assert len(shop.posts) == 3
    assert [attempt.refused for attempt in read_logs(tmp_path).attempts.values()] == [1, 1, 1]


async def test_keys_are_tried_twice_at_once_again_and_with_another_body(
    shop: LoadShop, tmp_path: Path
) -> None:
    tally = await _load(shop, tmp_path, orders=100, connections=1)

    posts = Counter(key for key, _ in shop.posts)
    assert sorted(count for count in posts.values() if count > 1) == [2, 2, 2]
    assert tally.probes == 3
    assert len(shop.orders) == 100
    attempts = list(read_logs(tmp_path).attempts.values())
    assert sum(len(attempt.order_ids) == 2 for attempt in attempts) == 2
    assert [attempt.other_body for attempt in attempts if attempt.other_body] == [[422]]


async def test_many_pages_of_orders_are_walked(
    shop: LoadShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "PAGE_ORDERS", 10)
    shop.status = "pending"

    async with asyncio.TaskGroup() as group:
        loaded = group.create_task(_load(shop, tmp_path, orders=95))
        await shop.until(lambda: len(shop.orders) >= 95)
        for order in shop.orders.values():
            order["status"] = "rejected"

    assert loaded.result().statuses == Counter({"rejected": 95})


async def test_settling_is_bounded(shop: LoadShop, tmp_path: Path) -> None:
    shop.status = "pending"

    started = time.monotonic()
    tally = await _load(shop, tmp_path, orders=3, settle_s=0.2)

    assert tally.as_json()["not_terminal"] == 3
    assert time.monotonic() - started < 15


async def test_stock_is_set_at_the_start_only_where_it_is_low(
    shop: LoadShop, tmp_path: Path
) -> None:
    shop.stock = {"LOAD-0001": [STOCK_LOW, 0], "LOAD-0002": [50, 30]}

    await _load(shop, tmp_path, orders=1, skus=3, inventory_url=shop.url)

    assert sorted(call[:2] for call in shop.stock_calls) == [
        ("PUT", "LOAD-0002"),
        ("PUT", "LOAD-0003"),
    ]
    assert shop.stock["LOAD-0002"] == [30 + STOCK_TARGET, 30]


async def test_stock_is_topped_up_when_orders_have_taken_much_of_it(
    shop: LoadShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "CHECK_INTERVAL_S", 0.01)
    shop.stock = {"LOAD-0001": [STOCK_TARGET, 0], "LOAD-0002": [STOCK_TARGET, 0]}
    async with aiohttp.ClientSession() as session:
        own = Shelf(session, shop.url, list(shop.stock))
        assert await own.fill() == ""
        own.take({"LOAD-0001": STOCK_TARGET - 5})
        shop.stock["LOAD-0001"][1] = STOCK_TARGET - 5
        keeping = asyncio.ensure_future(own.keep())
        await shop.until(lambda: shop.stock_calls)
        keeping.cancel()

    assert shop.stock_calls == [
        ("POST", "LOAD-0001", {"delta": STOCK_TARGET - 5, "reason": "load"})
    ]


async def _invoke(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(command)
    return await asyncio.to_thread(CliRunner().invoke, app, list(arguments))


async def test_the_command_says_what_is_wrong_and_exits_2(tmp_path: Path) -> None:
    result = await _invoke("--orders", "1", "--data", str(tmp_path))
    assert result.exit_code == 2
    assert "run.json does not exist: start the system with `ironcart up" in result.stderr

    result = await _invoke("--url", "http://127.0.0.1:9", "--data", str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr == "ironcart load: say how much: --rate N, --orders N or both\n"


async def _spawn(*arguments: str, **environ: str) -> asyncio.subprocess.Process:
    import sys

    code = "import typer; from ironcart.cli.load import load; typer.run(load)"
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | environ,
    )


async def test_over_tls_whom_to_trust_is_named_and_anybody_else_ends_the_run_at_once(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    issue(tmp_path, ["orders"])
    ours, named = tmp_path / "orders", tmp_path / "named"
    named.mkdir()
    (named / "run.json").write_text(json.dumps({"tls": {"ca": str(ours / "ca.crt")}}))
    options = ("--orders", "5", "--quiet", "--data")
    async with serving(LoadShop(), unused_tcp_port, Tls(ours).server) as shop:
        url, stranger = ("--url", shop.url), str(tmp_path / "stranger")
        runs = await asyncio.gather(
            _spawn(*url, *options, stranger),
            _spawn(*url, *options, stranger, "--inventory-url", shop.url),
            _spawn(*url, *options, stranger, IRONCART_TLS_DIR=str(ours)),
            _spawn(*url, *options, str(named)),
        )
        said = [(await each.communicate())[1].decode() for each in runs]

    assert [each.returncode for each in runs] == [2, 2, 0, 0], said
    for text in said[:2]:
        assert "shows a certificate that is not trusted" in text
        assert text.endswith("set IRONCART_TLS_DIR\n")
        assert text.count("\n") == 1
    assert len(shop.orders) == 10


async def test_the_command_ends_with_a_summary_and_its_exit_status_says_whether_all_is_well(
    shop: LoadShop, tmp_path: Path
) -> None:
    options = ("--url", shop.url, "--data", str(tmp_path), "--orders", "20", "--quiet", "--json")
    well = await _spawn(*options)
    output, _ = await well.communicate()
    summary = json.loads(output.splitlines()[-1])
    assert well.returncode == 0
    assert summary["accepted"] == summary["terminal"] == summary["confirmed"] == 20

    shop.status = "pending"
    stuck = await _spawn(*options, "--settle", "0.1")
    await stuck.communicate()
    assert stuck.returncode == 1


async def test_a_run_until_stopped_ends_orderly_on_sigterm(shop: LoadShop, tmp_path: Path) -> None:
    process = await _spawn("--url", shop.url, "--data", str(tmp_path), "--rate", "50")
    await shop.until(lambda: len(shop.orders) >= 20)
    process.terminate()
    output, _ = await process.communicate()

    assert process.returncode == 0
    assert b"accepted" in output
    log = read_logs(tmp_path)
    assert sum(len(attempt.order_ids) for attempt in log.attempts.values()) >= 20
    assert len(log.attempts) == len(shop.orders)
