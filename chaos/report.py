"""The report of a run: JSON for machines, a page and a table for people."""

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos import page
from chaos.judge import HARMS, Total, blame, complaints, place, totals
from chaos.plan import Options
from chaos.row import Row
from chaos.run import Result

DOCS = Path(__file__).parent.parent / "docs" / "reliability.md"
GIT_TIMEOUT_S = 10


@dataclass
class Report:
    """A run, judged."""

    options: Options
    result: Result
    planned: Sequence[Row]
    left_out: dict[str, str]
    rows: list[Total] = field(init=False)
    harms: dict[str, int] = field(init=False)
    complaints: list[str] = field(init=False)

    def __post_init__(self) -> None:
        result = self.result
        sent = list(result.load.by_key.values())
        place(result.injections, sent, result.ended)
        self.harms = blame(result.injections, sent, result.verify)
        self.rows = totals(result.injections)
        had_turns = {row.name for row in self.rows}
        self.complaints = complaints(
            self.rows,
            verified=result.verify_code,
            broken=[f["name"] for f in result.verify.get("findings", []) if not f["ok"]],
            accepted=result.load.accepted,
            load_code=result.load_code,
            up_code=result.up_code,
        )
        late = [row.name for row in self.planned if row.name not in had_turns]
        if self.options.budget_s and len(had_turns) >= self.options.rows_min:
            self.left_out |= dict.fromkeys(late, "the time was over; another seed takes it earlier")
        else:
            self.complaints += [f"{name}: never had its turn" for name in late]

    @property
    def verdict(self) -> str:
        """What is wrong with the run, or that nothing is."""
        return "; ".join(self.complaints) or "every invariant holds, every fault bit"

    @property
    def facts(self) -> dict[str, str]:
        """Where, when and with what: for the head of the report."""
        result, options = self.result, self.options
        finished = sum(end.ended_at is not None for end in result.ended.values())
        return {
            "seed": str(options.seed),
            "commit": _commit(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
            f" {platform.release()}, Python {platform.python_version()}",
            "begun": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(result.started_at)),
            "load": f"{options.rate:g} orders a second, open loop",
            "orders": f"{len(result.load.by_key):,} sent, {result.load.accepted:,} accepted,"
            f" {finished:,} of {len(result.ended):,} in the database at their end",
            "answers": ", ".join(f"{k}: {n:,}" for k, n in sorted(result.load.statuses.items())),
            "faults": f"{len(result.injections):,} injections of {len(self.rows)} rows",
            "duplicates absorbed": f"{result.meters.totals['duplicates']:,.0f} or more",
            "delivered again": f"{result.redelivered:,}",
            "drained": f"{result.drained_s:.1f} s after the last fault",
            "verdict": self.verdict,
        }

    def lines(self) -> list[str]:
        """Return the report for a terminal."""
        found = [f"{name}: {value}" for name, value in self.facts.items()]
        found += ["", *self.table(), "", *_verify_lines(self.result)]
        return found

    def table(self) -> list[str]:
        """Return the chaos table in Markdown."""
        head = (
            "| fault | injected | orders in flight | lost | double-charged | oversold "
            "| duplicates absorbed | seconds to recover |"
        )
        found = [head, "|---|---|---|---|---|---|---|---|"]
        for row in self.rows:
            harms = " | ".join(str(row.harms[harm]) for harm in HARMS)
            recovered = "-" if row.recovered_s is None else f"{row.recovered_s:.1f}"
            found.append(
                f"| {row.name} | {row.times} | {row.in_flight} | {harms} | {row.duplicates} "
                f"| {recovered} |"
            )
        harms = " | ".join(f"**{self.harms[harm]}**" for harm in HARMS)
        times = sum(row.times for row in self.rows)
        duplicates = round(self.result.meters.totals["duplicates"])
        found.append(f"| **all, with what lies between** | {times} | | {harms} | {duplicates} | |")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the report for a machine."""
        result = self.result
        return {
            "ok": not self.complaints,
            "complaints": self.complaints,
            "facts": self.facts,
            "settings": asdict(self.options),
            "rows": [asdict(row) for row in self.rows],
            "left_out": dict(self.left_out),
            "harms": self.harms,
            "injections": [asdict(each) for each in result.injections],
            "samples": [[round(each.at, 2), each.lag] for each in result.samples],
            "verify": result.verify,
        }


def write(report: Report, out: Path, *, docs: bool) -> None:
    """Write report.json and report.html into `out`; with `docs` the table into the docs, too."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report.as_json(), indent=1) + "\n")
    (out / "report.html").write_text(page.render(report.facts, report.rows, report.result))
    if docs:
        write_docs(report, DOCS)


def write_docs(report: Report, path: Path) -> None:
    """Replace what lies between the markers in a document by the table of this run."""
    kept = ("seed", "commit", "machine", "begun", "load", "orders", "faults", "verdict")
    facts = [f"- {name}: {value}" for name, value in report.facts.items() if name in kept]
    left = [f"- left out: {name}: {why}" for name, why in report.left_out.items()]
    put_between("chaos table", [*facts, *left, "", *report.table()], path)


def put_between(marker: str, lines: Sequence[str], path: Path) -> None:
    """Replace what lies between the two marks of this name in a document."""
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    made = "\n".join([begin, "", *lines, "", end])
    between = re.compile(f"{begin}.*?{end}", re.DOTALL)
    path.write_text(between.sub(lambda _: made, path.read_text()))


def _verify_lines(result: Result) -> list[str]:
    found = []
    for finding in result.verify.get("findings", []):
        figures = ", ".join(f"{name} {value}" for name, value in finding["figures"].items())
        found.append(f"{finding['name']:<4}{'ok    ' if finding['ok'] else 'BROKEN'} {figures}")
        found += [
            f"      {fault['kind']}: {fault['count']} {', '.join(fault['examples'])}"
            for fault in finding["faults"]
        ]
    return found or [f"verify said: {result.verify_text}"]


def _commit() -> str:
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607 - whichever git there is
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.stdout.strip() or "unknown"
