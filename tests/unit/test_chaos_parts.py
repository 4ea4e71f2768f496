"""The chaos harness: what it draws, follows and concludes, without a system."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from chaos import page
from chaos.defects import DEFECTS
from chaos.follow import LoadLog, Meters, Sent
from chaos.judge import Ended, Injection, blame, complaints, place, totals
from chaos.outside import parse_metrics, total
from chaos.plan import Options, choose, turns
from chaos.report import Report, write_docs
from chaos.row import Arena, Felt, Row
from chaos.rows import ROWS
from chaos.run import Result, Sample

SHORT = Options(seed=7, rate=10)
METRICS = """\
# HELP ironcart_outcomes_total what became of messages
ironcart_outcomes_total{consumer="audit/ORDERS",outcome="duplicate"} 3.0
ironcart_outcomes_total{consumer="orders/PAYMENTS",outcome="duplicate"} 2.0
ironcart_outcomes_total{consumer="orders/PAYMENTS",outcome="done"} 70.0
ironcart_broker_connected 1.0
"""


async def nothing(_: Arena, __: Felt) -> None:
    """A fault that does nothing."""


def felt(begin: float, end: float, *, bit: bool = True) -> Felt:
    found = Felt(begin, end)
    found.saw("it", proof=bit)
    return found


def rows(*names: str) -> list[Row]:
    return [Row(name, nothing) for name in names]


def verified(name: str, kind: str, *orders: str) -> dict[str, Any]:
    fault = {"kind": kind, "count": len(orders), "examples": list(orders)}
    finding = {"name": name, "title": "t", "ok": not orders, "figures": {}, "faults": [fault]}
    return {"findings": [finding]}


def test_a_seed_decides_the_order_of_the_rows_and_what_they_draw() -> None:
    def drawn(seed: int) -> list[tuple[str, float]]:
        found = turns(rows(*"abcdefgh"), Options(seed=seed, rate=1))
        return [(turn.row.name, turn.draw.random()) for turn in found]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert sorted(name for name, _ in drawn(1)) == list("abcdefgh")


def test_the_long_run_takes_every_row_again_and_again() -> None:
    every = turns(rows("a", "b"), Options(seed=1, rate=1, minutes=5))

    names = [next(every).row.name for _ in range(6)]

    assert [set(names[:2]), set(names[2:4]), set(names[4:])] == [{"a", "b"}] * 3


def test_a_row_that_cannot_run_here_is_left_out_with_the_reason() -> None:
    crippled = Row("b", nothing, lambda: "no loop devices here")

    chosen, left_out = choose([*rows("a"), crippled], SHORT)

    assert [row.name for row in chosen] == ["a"]
    assert left_out == {"b": "no loop devices here"}


def test_no_two_rows_have_one_name_and_enough_need_nothing_special() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert sum(row.lacks() == "" and not row.long for row in ROWS) >= 30


def test_a_fault_whose_proof_was_missed_has_not_bitten() -> None:
    assert felt(1, 2).bit
    assert not felt(1, 2, bit=False).bit
    assert not Felt(1, 2).bit


def test_orders_belong_to_the_fault_during_which_they_were_sent() -> None:
    injections = [Injection("a", felt(100, 110)), Injection("b", felt(120, 130))]
    sent = [Sent(90, 90, "early"), Sent(105, 105, "during"), Sent(125, 125, "later")]
    ended = {"early": Ended(90, 101), "during": Ended(105, 114), "later": Ended(125, 126)}

    place(injections, sent, ended)

    assert [each.in_flight for each in injections] == [1, 0]
    assert [each.recovered_s for each in injections] == [4.0, 0.0]


def test_harm_is_laid_at_the_door_of_the_fault_and_counted_whole() -> None:
    injections = [Injection("a", felt(100, 110)), Injection("b", felt(120, 130))]
    sent = [Sent(105, 105, "ORD-1"), Sent(125, 125, "ORD-2")]

    found = blame(injections, sent, verified("I2", "captured twice", "ORD-2", "ORD-9"))

    assert found == {"lost": 0, "double-charged": 2, "oversold": 0}
    assert [each.harms["double-charged"] for each in injections] == [0, 1]


def test_a_run_fails_for_a_fault_that_never_bit_but_not_for_one_that_once_did_not() -> None:
    injections = [
        Injection("never", felt(1, 2, bit=False)),
        Injection("once", felt(3, 4, bit=False)),
        Injection("once", felt(5, 6)),
    ]

    wrong = complaints(
        totals(injections), verified=0, broken=(), accepted=1, load_code=0, up_code=0
    )

    assert [each.partition(":")[0] for each in wrong] == ["never"]


def test_a_run_fails_for_a_broken_invariant_a_dead_load_and_a_bad_exit() -> None:
    wrong = complaints([], verified=1, broken=["I2"], accepted=0, load_code=2, up_code=1)

    assert len(wrong) == 4
    assert "I2" in wrong[0]


def test_metrics_are_added_up_by_their_labels() -> None:
    found = parse_metrics(METRICS)

    assert total(found, "ironcart_outcomes_total", outcome="duplicate") == 5
    assert total(found, "ironcart_broker_connected") == 1


def test_counters_go_on_when_their_process_begins_again() -> None:
    meters = Meters()

    meters.take("orders", parse_metrics(METRICS))
    meters.take("orders", parse_metrics(METRICS))
    meters.take("orders", parse_metrics(METRICS.replace(" 3.0", " 1.0")))

    assert meters.totals["duplicates"] == 6


def test_the_load_log_is_read_as_far_as_it_is_written(tmp_path: Path) -> None:
    at = "2026-11-21T12:00:00Z"
    lines = [
        {"kind": "run", "at": at},
        {"kind": "sent", "at": at, "key": "k", "attempt": 1},
        {"kind": "answer", "at": at, "key": "k", "status": 0},
        {"kind": "answer", "at": at, "key": "k", "status": 202, "order_id": "ORD-1"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path = tmp_path / "a.jsonl"
    log = LoadLog(tmp_path)

    path.write_text(text[:-9])
    assert log.count("202") == 0
    path.write_text(text)

    assert log.count("202", "0") == 2
    assert log.by_key["k"].order_id == "ORD-1"


def result_of(*injections: Injection) -> Result:
    result = Result(100.0, list(injections), [Sample(101, 4)], verify_code=0)
    result.load.by_key["k"] = Sent(101, 101, "ORD-1")
    result.load.accepted = 1
    result.ended["ORD-1"] = Ended(101.5, 103)
    result.verify = verified("I1", "")
    return result


def test_the_page_shows_the_faults_and_needs_nothing_from_elsewhere() -> None:
    report = Report(SHORT, result_of(Injection("a <b>", felt(101, 102))), rows("a <b>"), {})

    shown = page.render(report.facts, report.rows, report.result)

    assert not report.complaints
    assert "a &lt;b&gt;" in shown
    assert "<polyline" in shown
    assert "src=" not in shown
    assert "href=" not in shown


def test_a_planned_row_without_a_turn_is_a_complaint_unless_time_was_limited() -> None:
    did = Injection("a", felt(101, 102))
    limited = Options(seed=1, rate=1, budget_s=9, rows_min=1)

    assert Report(SHORT, result_of(did), rows("a", "b"), {}).complaints
    assert not Report(limited, result_of(did), rows("a", "b"), {}).complaints


def test_the_docs_get_the_table_between_their_markers_and_keep_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "reliability.md"
    begin, end = "<!-- chaos table: begin -->", "<!-- chaos table: end -->"
    path.write_text(f"before\n{begin}\nstale\n{end}\nafter\n")
    report = Report(SHORT, result_of(Injection("a", felt(101, 102))), rows("a"), {})

    write_docs(report, path)

    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "stale" not in text
    assert "| a | 1 | 0 | 0 | 0 | 0 | 0 | 1.0 |" in text


def test_every_defect_has_rows_that_expose_it() -> None:
    assert len(DEFECTS) >= 12
    for defect in DEFECTS:
        options = Options(seed=1, rate=1, only=defect.rows)
        assert choose([Row(row.name, nothing) for row in ROWS], options)[0], defect.name


INSIDE = Path(__file__).parents[2] / "chaos" / "defects" / "inside"
APPLY = """
import importlib
import sabotage
print(len(sabotage.DEFECTS))
for name, places in sabotage.DEFECTS.items():
    for place, break_it in places.items():
        break_it(importlib.import_module(place))
"""


def test_every_defect_still_fits_the_code_it_breaks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", APPLY],
        env={"PYTHONPATH": f"{INSIDE}:{Path(__file__).parents[2] / 'src'}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(DEFECTS)


def test_draws_of_different_rows_do_not_depend_on_each_other() -> None:
    first = {t.row.name: t.draw.random() for t in turns(rows("a", "b"), SHORT)}
    second = {t.row.name: t.draw.random() for t in turns(rows("b"), SHORT)}

    assert first["b"] == second["b"]
    assert first["b"] == random.Random("7/b/0").random()
