"""`python -m benchmarks [NAME ...]`: measures on this machine, and says what it found.

Without names all of it, in order, which takes some hours; `gate` alone is what CI asks, under
three minutes. Exit 0 when everything named was measured, 1 when something was not or a ratio of the
gate is broken. Results are kept by name: those of other names in the report stay as they are.
"""

import argparse
import asyncio
import importlib
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import StatisticsError, median
from typing import Any, Protocol

import psutil
import uvloop

from benchmarks import edge, hour, outage, page, prices, replicas, share, sizes
from benchmarks.bed import Bed, CannotMeasure
from benchmarks.endtoend import CONNECTIONS, S_PER_MIN, Spell, closed, open_loop, warm_up
from benchmarks.machine import facts
from benchmarks.page import IDLE, TWICE
from chaos.report import put_between

DOCS = Path(__file__).parent.parent / "docs"
PAGE = "performance.md"
REPORT = "report.json"
# What a comparison of many spells can afford of the length of one.
SPELL_SHARE = 1 / 3
GATE = "gate"
SPELLS = 3
IDLE_RATE = 1.0


class Found(Protocol):
    """What every scenario returns."""

    def lines(self) -> list[str]:
        """Say it to a person."""

    def as_json(self) -> dict[str, Any]:
        """Say it to a machine."""


@dataclass(slots=True)
class EndToEnd:
    """The most that goes through, spell by spell, and how long orders wait under other loads."""

    closed: list[Spell]
    others: list[tuple[str, Spell]] = field(default_factory=list)

    @property
    def best(self) -> Spell:
        """The spell with the most orders a minute: the machine's own speed changes meanwhile."""
        return max(self.closed, key=lambda spell: spell.per_minute)

    @property
    def usual_rate(self) -> float:
        """Orders a second of the spell in the middle."""
        return median(spell.per_minute for spell in self.closed) / S_PER_MIN

    def lines(self) -> list[str]:
        """Return it for a person."""
        found = []
        for name, spell in [*(("closed loop", each) for each in self.closed), *self.others]:
            found += [name, *spell.lines()]
        return found

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine."""
        return {
            "closed": self.best.as_json(),
            "spells": [spell.as_json() for spell in self.closed],
            "others": [{"name": name, "spell": spell.as_json()} for name, spell in self.others],
        }


async def _endtoend(given: argparse.Namespace) -> Found:
    async with Bed() as bed:
        await warm_up(bed)
        spells = [await closed(bed, given.seconds, given.connections) for _ in range(given.spells)]
        found = EndToEnd(spells)
        for part in given.shares:
            rate, name = part * found.usual_rate, f"open loop, {part:.0%}"
            found.others.append((name, await open_loop(bed, rate, given.seconds / 2)))
        twice = await closed(bed, given.seconds / 2, 2 * given.connections)
        found.others.append((TWICE, twice))
        found.others.append((IDLE, await open_loop(bed, IDLE_RATE, given.seconds / 2)))
    return found


async def _batches(given: argparse.Namespace) -> Found:
    return await prices.batches(given.seconds, connections=given.connections, rounds=given.rounds)


async def _prices(given: argparse.Namespace) -> Found:
    return await prices.measure(given.seconds, connections=given.connections, rounds=given.rounds)


async def _outage(given: argparse.Namespace) -> Found:
    return await outage.measure(given.outage, rate=given.rate, seconds=given.seconds)


async def _sizes(given: argparse.Namespace) -> Found:
    return await sizes.measure(
        given.seconds,
        connections=given.connections,
        sizes=sizes.FULL_SIZES if given.full else sizes.SIZES,
        rounds=given.rounds,
        lag_events=given.events,
    )


async def _floor(given: argparse.Namespace) -> Found:
    return await share.measure(given.seconds, given.connections, given.rounds)


async def _hour(given: argparse.Namespace) -> Found:
    return await hour.measure(given.hour, rate=given.rate, seconds=given.seconds)


async def _replicas(given: argparse.Namespace) -> Found:
    return await replicas.measure(given.seconds, given.connections)


async def _edge(given: argparse.Namespace) -> Found:
    return await edge.measure(given.seconds, given.connections)


async def _gate(given: argparse.Namespace) -> Found:
    return await prices.gate(connections=given.connections)


def _by_name(module: str, function: str) -> Callable[[argparse.Namespace], Awaitable[Found]]:
    """A scenario that needs what only it needs: imported when it is asked for."""

    async def scenario(_: argparse.Namespace) -> Found:
        found: Found = await getattr(importlib.import_module(module), function)()
        return found

    return scenario


@dataclass(frozen=True, slots=True)
class Scenario:
    """What to run, which settings it heeds, and which part of --seconds one of its spells takes."""

    run: Callable[[argparse.Namespace], Awaitable[Found]]
    heeds: tuple[str, ...] = ()
    share: float = SPELL_SHARE


SCENARIOS: Mapping[str, Scenario] = {
    "endtoend": Scenario(_endtoend, ("seconds", "connections", "shares", "spells"), 1.0),
    "batches": Scenario(_batches, ("seconds", "connections", "rounds")),
    "peer": Scenario(_by_name("benchmarks.peer", "compare")),
    "floor": Scenario(_floor, ("seconds", "connections", "rounds")),
    "outage": Scenario(_outage, ("outage", "rate")),
    "sizes": Scenario(_sizes, ("seconds", "connections", "rounds", "full", "events")),
    "prices": Scenario(_prices, ("seconds", "connections", "rounds")),
    "edge": Scenario(_edge, ("seconds", "connections")),
    "replicas": Scenario(_replicas, ("seconds", "connections")),
    "hour": Scenario(_hour, ("hour", "rate")),
    GATE: Scenario(_gate, ("connections",)),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for."""
    parser = _arguments()
    given = parser.parse_args(argv)
    if unknown := sorted(set(given.names) - set(SCENARIOS)):
        parser.error(f"no such thing to measure: {', '.join(unknown)}")
    broken = False
    for name in given.names or [name for name in SCENARIOS if name != GATE]:
        print(f"{name} ...", flush=True)
        try:
            entry = _measured(name, given)
        except (CannotMeasure, OSError, TimeoutError, psutil.Error, StatisticsError) as error:
            said = str(error) or type(error).__name__
            print(f"benchmarks: {name}: {said}", file=sys.stderr, flush=True)
            broken = True
            continue
        print(*entry["lines"], sep="\n", flush=True)
        broken |= bool(entry["result"].get("complaints"))
        keep(name, entry, given.out)
    if given.write_docs:
        write_docs(given.out, DOCS)
    return int(broken)


def _measured(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run one scenario; returns what is kept of it."""
    scenario, where = SCENARIOS[name], facts()
    own = argparse.Namespace(**{**vars(given), "seconds": given.seconds * scenario.share})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(_run(scenario, own))
    heeded = {key: getattr(own, key) for key in scenario.heeds}
    return {
        "facts": where,
        "settings": {key: value for key, value in heeded.items() if value is not None},
        "result": found.as_json(),
        "lines": found.lines(),
    }


async def _run(scenario: Scenario, given: argparse.Namespace) -> Found:
    return await scenario.run(given)


def keep(name: str, entry: Mapping[str, Any], out: Path) -> None:
    """Put a result into the report, in place of an earlier one of that name."""
    out.mkdir(parents=True, exist_ok=True)
    report = out / REPORT
    results = kept(out) | {name: entry}
    fresh = report.with_suffix(".new")
    fresh.write_text(json.dumps({"results": results}, indent=1) + "\n")
    fresh.replace(report)


def kept(out: Path) -> dict[str, Any]:
    """Read what the report holds."""
    report = out / REPORT
    found: dict[str, Any] = json.loads(report.read_text())["results"] if report.exists() else {}
    return found


def write_docs(out: Path, docs: Path) -> None:
    """Put the figures of the report into the page, and its plots beside it."""
    results = kept(out)
    for marker, lines in page.sections(results).items():
        put_between(marker, lines, docs / PAGE)
    for name, drawn in page.plots(results).items():
        (docs / name).write_text(drawn)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="the long spell; others take a part of it"
    )
    parser.add_argument(
        "--connections", type=int, default=CONNECTIONS, help="callers in closed loop"
    )
    parser.add_argument("--spells", type=int, default=SPELLS, help="long ones in closed loop")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.3, 0.5, 0.7])
    parser.add_argument("--rounds", type=int, default=2, help="of what is compared in turns")
    parser.add_argument("--outage", type=float, default=outage.LASTS_S, help="its seconds")
    parser.add_argument("--hour", type=float, default=hour.LASTS_S, help="its seconds")
    parser.add_argument("--rate", type=float, help="orders a second in outage and hour")
    parser.add_argument("--full", action="store_true", help="a million orders, too (20 GB of disk)")
    parser.add_argument("--events", type=int, default=sizes.LAG_EVENTS, help="of backlog; 0: none")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="for report.json")
    parser.add_argument("--write-docs", action="store_true", help=f"the figures into docs/{PAGE}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
