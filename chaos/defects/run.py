"""Runs the defects: a short system for each, with the rows that expose it; two at a time."""

import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos.defects import DEFECTS, Defect
from chaos.plan import Options, choose
from chaos.report import DOCS, Report, put_between
from chaos.rows import ROWS
from chaos.run import Run
from chaos.system import CannotStart, discard

INSIDE = Path(__file__).parent / "inside"
AT_ONCE = 2
RATE = 25.0
SETTLE_S = 5.0
# Without a defect everything is at its end by then: a lease is 60 s, a breaker opens for 30.
DRAIN_S = 75.0
UNREST, LIVENESS = "not quiet", "I11"
OK, MISSED = 0, 1

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Caught:
    """What came of one defect: `by` names invariants and complaints, nothing when it got away."""

    name: str
    rows: tuple[str, ...]
    by: tuple[str, ...] = ()
    skipped: str = ""
    put_in: int = 0
    seconds: float = 0.0
    note: str = ""


async def run_defects(
    only: Sequence[str], seed: int, out: Path, tell: Tell, *, docs: bool = False
) -> int:
    """Run every defect (or those whose names contain one of `only`); 0 when all were caught.

    With `docs` the table goes into the docs, too.
    """
    chosen = [
        defect
        for defect in DEFECTS
        if not only or any(each.lower() in defect.name.lower() for each in only)
    ]
    at_once = asyncio.Semaphore(AT_ONCE)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_one(defect, seed, at_once, tell)) for defect in chosen]
    results = [task.result() for task in tasks]
    _write(results, out)
    if docs:
        put_between("chaos defects", table(results, seed), DOCS)
    missed = [each.name for each in results if not each.by and not each.skipped]
    caught = sum(bool(each.by) for each in results)
    tell(f"{caught} of {len(results)} defects caught; missed: {', '.join(missed) or 'none'}")
    return MISSED if missed or not caught else OK


def table(results: Sequence[Caught], seed: int) -> list[str]:
    """Return the defects and what gave them away, in Markdown."""
    lines = [
        f"Seed {seed}; {sum(bool(each.by) for each in results)} of {len(results)} caught.",
        "",
        "| defence taken away | fault | caught by |",
        "|---|---|---|",
    ]
    for each in results:
        by = f"skipped: {each.skipped}" if each.skipped else "; ".join(each.by) or "**missed**"
        lines.append(f"| {each.name} | {', '.join(each.rows)} | {by} |")
    return lines


def _write(results: Sequence[Caught], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(each) for each in results], indent=1)
    (out / "defects.json").write_text(text + "\n")


async def _one(defect: Defect, seed: int, at_once: asyncio.Semaphore, tell: Tell) -> Caught:
    async with at_once:
        found = await _expose(defect, seed)
    if found.skipped:
        tell(f"skipped  {defect.name}: {found.skipped}")
    elif found.by:
        tell(f"caught   {defect.name} in {found.seconds:.0f} s: {'; '.join(found.by)}")
    else:
        tell(f"MISSED   {defect.name} {found.note}")
    return found


async def _expose(defect: Defect, seed: int) -> Caught:
    options = Options(seed=seed, rate=RATE, only=defect.rows, settle_s=SETTLE_S, drain_s=DRAIN_S)
    rows, left_out = choose(ROWS, options)
    if left_out or not rows:
        return Caught(defect.name, defect.rows, skipped="; ".join(left_out.values()))
    began = time.monotonic()
    folder, marks = _folders()
    path = os.pathsep.join([str(INSIDE), *filter(None, [os.environ.get("PYTHONPATH")])])
    broken = {"CHAOS_DEFECT": defect.name, "CHAOS_MARKS": str(marks), "PYTHONPATH": path}
    run = Run(
        folder / "data",
        options,
        rows,
        environ=os.environ | broken | dict(defect.environ),
        tell=lambda _: None,
        prepare=defect.sql,
    )
    note = ""
    by: tuple[str, ...] = ()
    try:
        by = _by(Report(options, await run.run(), rows, {}), defect)
    except CannotStart as error:
        note = f"it did not start: {error}"
    put_in = len(list(marks.iterdir()))
    discard(folder / "data")
    shutil.rmtree(folder, ignore_errors=True)
    if not put_in:
        # Noticed or not: what was not broken cannot have been found broken.
        note, by = note or "the defect was never put in", ()
    seconds = time.monotonic() - began
    return Caught(defect.name, defect.rows, by, "", put_in, seconds, note)


def _folders() -> tuple[Path, Path]:
    """Make a folder that Postgres's own user reaches, and one in it for the defect's marks."""
    folder = Path(tempfile.mkdtemp(prefix="ironcart-defect-", dir="/var/tmp"))
    folder.chmod(0o755)
    marks = folder / "marks"
    marks.mkdir()
    return folder, marks


def _by(report: Report, defect: Defect) -> tuple[str, ...]:
    """Say what gave the defect away: each broken invariant with its first fault.

    That a system is not quiet yet is no proof: a slow machine does that, too.
    """
    broken = tuple(
        f"{finding['name']} {fault['kind']}: {fault['count']}"
        for finding in report.result.verify.get("findings", [])
        for fault in [f for f in finding["faults"] if not f["kind"].startswith(UNREST)][:1]
        if not finding["ok"] and finding["name"] != LIVENESS
    )
    if report.result.verify_code and not report.result.verify:
        # A stream or a table that is gone leaves nothing to judge.
        broken = (f"verify: {report.result.verify_text.splitlines()[-1]}",)
    return broken or (tuple(report.complaints) if defect.by_proof else ())
