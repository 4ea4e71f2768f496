"""What of the benchmarks is pure: reading figures, judging them, writing the page."""

import importlib.util
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.dom import minidom

import pytest

from benchmarks import page
from benchmarks.__main__ import DOCS, PAGE, SCENARIOS, EndToEnd, keep, kept, main, write_docs
from benchmarks.edge import Edge
from benchmarks.endtoend import Spell
from benchmarks.floor import Floor
from benchmarks.hour import PARTS, Hour
from benchmarks.outage import Look, Outage, at, counted
from benchmarks.prices import ONE, WITH, WITHOUT, Batches, Compared, Gate, Pair
from benchmarks.replicas import Shape, Shapes
from benchmarks.share import Share
from benchmarks.sizes import COPIED, Lag, Sizes, copying, undelivered

METRICS = """\
# HELP ironcart_orders_finished_total orders that have ended
ironcart_orders_finished_total{status="confirmed"} 40.0
ironcart_orders_finished_total{status="rejected"} 2.0
ironcart_orders_finished_created{status="confirmed"} 1.7e9
ironcart_orders_accepted_total 50.0
"""
JSZ = {
    "account_details": [
        {
            "stream_detail": [
                {
                    "consumer_detail": [
                        {"name": "audit", "num_pending": 5, "num_ack_pending": 2},
                        {"name": "orders", "num_pending": 1, "num_ack_pending": 0},
                    ]
                },
                {"name": "empty"},
            ]
        }
    ]
}
FACTS = {"machine": "a machine", "commit": "abc"}


def spell(per_minute: float, cpu_us: float = 1_000) -> Spell:
    waits = {"p50": 10.0, "p95": 20.0, "p99": 30.0}
    return Spell(
        accepted=round(per_minute),
        sending_s=50.0,
        until_done_s=60.0,
        statuses={"202": round(per_minute)},
        accept_ms=waits,
        confirm_ms=waits,
        cpu_us_an_order={"orders": cpu_us / 2, "postgres": cpu_us / 2},
        memory_mb={"orders": 80.0},
        batches={"orders/ORDERS": 100.0},
    )


def entry(result: Mapping[str, Any], *lines: str) -> dict[str, Any]:
    return {"facts": FACTS, "settings": {"seconds": 1.0}, "result": result, "lines": list(lines)}


def outage() -> Outage:
    """10 a second; away from 10 s to 20 s; two seconds of nothing, then 30 a second."""
    ended = [*range(0, 101, 10), *[100] * 12, 130, 160, 190, 220, 250, 270]
    looks = [Look(float(n), 10.0 * n, float(done)) for n, done in enumerate(ended)]
    return Outage(10.0, 10.0, 20.0, 27.0, looks)


def everything() -> dict[str, Any]:
    """A report of every scenario."""
    under_other_loads = [(name, spell(100)) for name in ("open loop, 70%", page.TWICE, page.IDLE)]
    compared = Compared(
        {each.name: [Pair((spell(900), spell(1_100)), spell(1_250))] for each in WITHOUT + WITH}
    )
    one = Batches({ONE.name: [Pair((spell(900), spell(1_100)), spell(50, 15_000))]})
    lag = Lag(10, 1.0, {"orders": 80}, {"orders": 85}, {"orders": 82})
    sizes = Sizes({10: [spell(100)], 100: [spell(90)]}, {10: 1.0, 100: 2.0}, lag)
    found = {
        "endtoend": EndToEnd([spell(50_000), spell(60_000)], under_other_loads).as_json(),
        "batches": one.as_json(),
        "peer": {"ratio": 9.0},
        "floor": Share(
            [floor(800), floor(1_200), floor(1_000)], [spell(600), spell(660)]
        ).as_json(),
        "outage": outage().as_json(),
        "sizes": sizes.as_json(),
        "prices": compared.as_json(),
        "edge": Edge([4_000.0, 6_000.0, 5_500.0], {"orders": 100.0}, {"202": 3}).as_json(),
        "replicas": Shapes([Shape(2, 1, spell(100), 0, 0.0, True)]).as_json(),
        "hour": an_hour({"orders": 0.0}).as_json(),
    }
    return {name: json.loads(json.dumps(entry(result, "said"))) for name, result in found.items()}


def an_hour(growth_mb: Mapping[str, float]) -> Hour:
    """An hour in which parts grow by so much, after filling up by 20 MB in its first minutes."""
    looks = [
        (
            float(at),
            {
                part: 80 + 20 * min(1, at / 600) + growth_mb.get(part, 0) * at / 3_600
                for part in PARTS
            },
        )
        for at in range(0, 3_601, 10)
    ]
    return Hour(100.0, 360_000, {"202": 360_000}, looks)


def floor(per_minute: float) -> Floor:
    return Floor(round(per_minute), 150, 60.0, 13.0, {"postgres": 400.0}, {"orders": 150.0})


def test_a_share_of_the_floor_is_taken_of_the_floors_around_each_spell() -> None:
    found = Share([floor(800), floor(1_200), floor(1_000)], [spell(600), spell(660)])

    assert found.share == pytest.approx(0.6)
    assert [line for line in found.lines() if not line.startswith(" ")] == [
        *("floor", "system", "floor", "system", "floor"),
        "share of the floor 60%",
    ]


def test_filling_up_at_first_is_no_growth_and_a_slow_leak_is() -> None:
    calm, leaking = an_hour({}), an_hour({"audit": 8.0, "nats-server": 300.0})

    assert calm.growth("audit") == pytest.approx(0)
    assert not calm.complaints
    assert leaking.growth("audit") == pytest.approx(8)
    assert len(leaking.complaints) == 1
    assert "audit" in leaking.complaints[0]


def test_replicas_that_leave_faults_behind_fail_the_run() -> None:
    well, ill = Shape(1, 1, spell(100), 0, 0.0, True), Shape(2, 1, spell(90), 3, 1.0, False)

    assert not Shapes([well]).complaints
    assert "2 of each" in Shapes([well, ill]).complaints[0]
    assert "NOT OK" in "".join(Shapes([well, ill]).lines())
    assert Shapes([well], ["10 of each service: not ready"]).complaints


def test_a_counter_is_summed_over_its_labels_and_no_other_is() -> None:
    assert counted(METRICS, "ironcart_orders_finished_total") == 42
    assert counted(METRICS, "ironcart_orders_accepted_total") == 50
    assert counted(METRICS, "ironcart_orders_accepted") == 0


def test_an_outage_is_told_by_what_ended_and_what_came() -> None:
    found = outage()

    assert found.backlog == 100
    assert found.resumed_s == 23
    assert found.multiple(22.0) == pytest.approx(150 / 50)
    assert found.multiple(20.0) == pytest.approx(150 / 70)
    assert at(found.looks, 12.7).at == 12
    assert at(found.looks, -1.0).at == 0


def test_what_is_not_acknowledged_is_counted_but_for_the_deaf() -> None:
    assert undelivered(JSZ) == 8
    assert undelivered(JSZ, ("audit",)) == 1
    assert undelivered({}) == 0


def test_a_copy_has_its_own_keys_and_keeps_the_rest() -> None:
    statement = copying("entries", ["stream", "stream_seq", "event_id", "aggregate_id", "body"])

    assert "p.stream || '-copied'" in statement
    assert "gen_random_uuid()::text" in statement
    assert "right(p.aggregate_id, 16)" in statement
    assert statement.count("p.body") == 1
    assert "stream_seq" not in COPIED, "the inbox keeps where its messages were"


def test_a_price_is_what_having_the_thing_costs() -> None:
    without, having = WITHOUT[0].name, WITH[0].name
    plain = (spell(900, 1_100), spell(1_100, 1_300))
    found = Compared(
        {
            without: [Pair(plain, spell(1_250, 900))],
            having: [Pair(plain, spell(800, 1_500))],
        }
    ).rows()

    assert (found[without]["cpu_us"], found[without]["share"]) == (300, 0.2)
    assert (found[having]["cpu_us"], found[having]["share"]) == (300, 0.2)


def test_sizes_differ_by_the_slowest_against_the_fastest() -> None:
    found = Sizes({10: [spell(100), spell(100)], 100: [spell(80), spell(90)]}, {10: 1, 100: 2})

    assert found.spread == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("gate", "complaints"),
    [
        (Gate(12.0, 9.0, {"orders/ORDERS": 80.0}), 0),
        (Gate(12.0, 9.0, {"orders/ORDERS": 80.0, "audit/DEADLETTERS": 1.0}), 0),
        (Gate(2.0, 9.0, {"orders/ORDERS": 80.0}), 1),
        (Gate(12.0, 2.0, {"orders/ORDERS": 80.0}), 1),
        (Gate(12.0, 9.0, {"orders/ORDERS": 3.0}), 1),
        (Gate(12.0, 9.0, {}), 1),
    ],
)
def test_the_gate_complains_of_what_is_broken(gate: Gate, complaints: int) -> None:
    assert len(gate.complaints) == complaints
    assert sum("BROKEN" in line for line in gate.lines()) == complaints


def test_every_patch_names_something_that_is_there() -> None:
    for variant in (ONE, *WITHOUT, *WITH):
        for patch in variant.patches:
            module, _, setting = patch.partition(":")
            assert importlib.util.find_spec(module) is not None
            loaded = importlib.import_module(module)
            assert hasattr(loaded, setting.partition("=")[0]), patch


def test_the_page_has_a_place_for_every_section_and_plot() -> None:
    text = (DOCS / PAGE).read_text()

    for marker in page.sections({}):
        assert f"<!-- {marker}: begin -->" in text
        assert f"<!-- {marker}: end -->" in text
    assert set(page.SECTIONS) == set(SCENARIOS) - {"gate"}


def test_the_page_says_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    page_there = tmp_path / PAGE
    page_there.write_text((DOCS / PAGE).read_text())
    out = tmp_path / "out"
    everyone = everything()
    for name in ("endtoend", "edge"):
        keep(name, everyone[name], out)

    write_docs(out, tmp_path)

    text = page_there.read_text()
    assert "| orders a minute, everything on | ≥ 60,000 | 60,000 | reached |" in text
    assert "| against batches of one | ≥ 12.0 | not measured | |" in text
    assert "| accept only, orders a second | ≥ 5,000 | 5,500 | reached |" in text
    assert text.count("Not measured.") == len(page.SECTIONS) - 2
    assert (tmp_path / "performance-cpu.svg").exists()
    assert not (tmp_path / "performance-prices.svg").exists()


def test_everything_measured_is_shown() -> None:
    found = page.sections(everything())

    assert not any("Not measured." in lines for lines in found.values())
    assert any("share of the floor | ≥ 50% | 60%" in line for line in found["goals"])
    assert "not measured" not in "\n".join(found["goals"])
    for drawn in page.plots(everything()).values():
        assert minidom.parseString(drawn).childNodes[0].nodeName == "svg"


def test_a_short_run_lacks_figures_and_says_so() -> None:
    found = everything()
    found["endtoend"]["result"]["others"] = []

    assert any("not measured" in line for line in page.goals(found))


def test_a_result_takes_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    keep("edge", entry({"old": 1}), tmp_path)
    keep("floor", entry({}), tmp_path)
    keep("edge", entry({"new": 1}), tmp_path)

    assert kept(tmp_path)["edge"]["result"] == {"new": 1}
    assert set(kept(tmp_path)) == {"edge", "floor"}


@pytest.mark.parametrize(("module", "function"), [("peer", "compare")])
def test_what_is_imported_late_is_there(module: str, function: str) -> None:
    assert inspect.iscoroutinefunction(
        getattr(importlib.import_module(f"benchmarks.{module}"), function)
    )


def test_an_unknown_name_is_refused_before_anything_starts() -> None:
    with pytest.raises(SystemExit):
        main(["endtoend", "nonsense"])
