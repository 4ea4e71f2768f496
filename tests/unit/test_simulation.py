"""The toolkit's loops under simulated schedules; more of them: `make simulate`."""

import asyncio
import random
from collections import Counter

import pytest

from simulation.clock import Process, SimulatedLoop
from simulation.defects import DEFECTS, Defect
from simulation.runs import SOMETIMES, every_step, first_broken
from simulation.schedule import Plan, run
from simulation.statements import Tables, UnknownStatement, answer

SEEDS = 50
SEEDS_TO_NOTICE = 200
SEED_OF_TWO_OUTAGES = 110
# Where to begin, so that the tests stay quick.
NOTICED_LATE = {"lease_for_ever": 15, "settle_without_lease": 28, "drain_in_a_hurry": 90}
# Every step: `python -m simulation --steps`.
STEP_STRIDE = 37


def test_whatever_happens_all_is_well_in_the_end() -> None:
    seen: Counter[str] = Counter()
    broken = {}
    for seed in range(SEEDS):
        verdict = run(Plan(seed))
        seen.update(verdict.seen)
        if verdict.broken:
            broken[seed] = verdict.broken

    assert not broken, "replay: PYTHONPATH=tests python -m simulation --seed N --trace"
    assert sum(what in seen for what in SOMETIMES) >= len(SOMETIMES) - 3


def test_a_crash_at_any_step_of_a_short_schedule_is_made_good() -> None:
    broken = [verdict.broken for verdict in every_step(STEP_STRIDE) if verdict.broken]

    assert not broken


def test_a_loop_outlives_an_outage_of_the_broker_and_then_one_of_the_database() -> None:
    assert not run(Plan(SEED_OF_TWO_OUTAGES)).broken


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_defence_that_is_missing_is_noticed(defect: Defect) -> None:
    first = NOTICED_LATE.get(defect.__name__, 0)

    assert first_broken(defect, range(first, SEEDS_TO_NOTICE)) is not None


def test_a_seed_is_one_schedule() -> None:
    first, again, other = (run(Plan(seed, tracing=True)).trace for seed in (7, 7, 8))

    assert first == again
    assert first != other


def test_a_statement_that_nobody_knows_ends_the_run() -> None:
    with pytest.raises(UnknownStatement):
        answer(Tables(lambda: 0.0, lambda _: None), "SELECT 2", ())


def test_a_crashed_process_runs_no_further_step() -> None:
    loop = SimulatedLoop(random.Random(1))  # type: ignore[abstract] # enough of it
    process = Process(loop, "victim")
    done: list[object] = []

    async def work() -> None:
        try:
            while True:
                await asyncio.sleep(1)
                done.append(loop.time())
        finally:
            done.append("cleaned up")

    async def watch() -> list[object]:
        process.spawn(work())
        await asyncio.sleep(3.5)
        process.crash()
        await asyncio.sleep(10)
        return list(done)

    assert len(loop.run(watch())) == 3
