"""The report for people: what goes between the markers of docs/performance.md, and its plots."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, LEFT, RIGHT = 760, 190, 120
BAR, GAP, HEAD = 18, 8, 34
PLOT = 220
TICKS = 6
FONT = "font-family='system-ui, sans-serif' font-size='12'"
COLOURS = ("#2463c9", "#11852f", "#b35a00", "#8a2be2", "#c2185b", "#555")
MEMORY_MB_MAX = 120.0

Results = Mapping[str, Mapping[str, Any]]


IDLE = "idle, one order a second"
TWICE = "closed loop, twice the callers"


def _of(found: Any, name: str) -> Any:
    """The spell of that name, of an end-to-end result."""
    return next(each["spell"] for each in found["others"] if each["name"] == name)


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked for: a figure of one scenario, and the value it has to reach."""

    text: str
    scenario: str
    figure: Callable[[Any], float]
    least: float | None = None
    most: float | None = None
    form: str = "{:,.1f}"

    def reached(self, value: float) -> bool:
        """Judge a value."""
        above = self.least is None or value >= self.least
        return above and (self.most is None or value <= self.most)

    @property
    def wanted(self) -> str:
        """The goal as people write it."""
        if self.least is not None:
            return "≥ " + self.form.format(self.least)
        assert self.most is not None
        return "≤ " + self.form.format(self.most)


GOALS = (
    Goal(
        "orders a minute, everything on",
        "endtoend",
        lambda found: float(found["closed"]["per_minute"]),
        least=60_000,
        form="{:,.0f}",
    ),
    Goal(
        "p99 of accept to confirmed at 70% of the middle spell, ms",
        "endtoend",
        lambda found: _of(found, "open loop, 70%")["confirm_ms"]["p99"],
        most=1_000,
        form="{:,.0f}",
    ),
    Goal(
        "p50 of accept on an idle system, ms",
        "endtoend",
        lambda found: _of(found, IDLE)["accept_ms"]["p50"],
        most=10,
    ),
    Goal(
        "p50 of accept to confirmed on an idle system, ms",
        "endtoend",
        lambda found: _of(found, IDLE)["confirm_ms"]["p50"],
        most=150,
    ),
    Goal(
        "p99 of accept to confirmed with twice as many callers as fill it, ms",
        "endtoend",
        lambda found: _of(found, TWICE)["confirm_ms"]["p99"],
        most=10_000,
        form="{:,.0f}",
    ),
    Goal(
        "resident memory of the largest service under full load, MB",
        "endtoend",
        lambda found: float(max(found["closed"]["memory_mb"].values())),
        most=MEMORY_MB_MAX,
        form="{:,.0f}",
    ),
    Goal("against batches of one", "batches", lambda found: float(found["ratio"]), least=12),
    Goal("the same stage on FastStream", "peer", lambda found: float(found["ratio"]), least=8),
    Goal(
        "drain after the outage, times the rate of arrival",
        "outage",
        lambda found: float(found["multiple"]),
        least=2,
    ),
    Goal(
        "spread of throughput over sizes",
        "sizes",
        lambda found: float(found["spread"]),
        most=0.15,
        form="{:.0%}",
    ),
    Goal(
        "share of the floor",
        "floor",
        lambda found: float(found["share"]),
        least=0.5,
        form="{:.0%}",
    ),
    Goal(
        "accept only, orders a second",
        "edge",
        lambda found: float(found["median_per_second"]),
        least=5_000,
        form="{:,.0f}",
    ),
)


def sections(results: Results) -> dict[str, list[str]]:
    """Return what goes between each marker; what was not measured says so."""
    found = {"goals": goals(results)}
    for name, section in SECTIONS.items():
        entry = results.get(name)
        if entry is None:
            found[name] = ["Not measured."]
        else:
            found[name] = [_origin(entry), "", *section(entry)]
    return found


def goals(results: Results) -> list[str]:
    """Return the table of goals: what was asked for, what was measured."""
    table = ["| goal | asked | measured | |", "|---|---|---|---|"]
    for goal in GOALS:
        entry = results.get(goal.scenario)
        value = None if entry is None else _figure(goal, entry["result"])
        if value is None:
            table.append(f"| {goal.text} | {goal.wanted} | not measured | |")
        else:
            said = "reached" if goal.reached(value) else "**not reached**"
            table.append(f"| {goal.text} | {goal.wanted} | {goal.form.format(value)} | {said} |")
    return table


def _figure(goal: Goal, result: Any) -> float | None:
    """Read a goal's figure; a short run may lack it."""
    try:
        return goal.figure(result)
    except (StopIteration, KeyError, ValueError):
        return None


def _origin(entry: Mapping[str, Any]) -> str:
    facts = {**entry["facts"], **{name: str(value) for name, value in entry["settings"].items()}}
    return (
        "*" + "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()) + "*"
    )


def _endtoend(entry: Mapping[str, Any]) -> list[str]:
    result = entry["result"]
    most = result["closed"]
    waits = [("closed loop", spell) for spell in result["spells"]]
    waits += [(each["name"], each["spell"]) for each in result["others"]]
    done = f"{most['accepted']:,} orders in {most['until_done_s']:.1f} s"
    heads = ("load", "orders/s", *(f"accept p{p}" for p in (50, 95, 99)))
    heads += (*(f"accept to confirmed p{p}" for p in (50, 95, 99)), "CPU µs an order")
    return [
        f"**{most['per_minute']:,.0f} orders a minute**, mailed and audited: {done}.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        *(_waits(name, spell) for name, spell in waits),
        "",
        "Milliseconds. In closed loop callers wait for each other; by the clock they do not.",
        "The processes below are those of the closed loop that did most.",
        "",
        "![CPU of an order](performance-cpu.svg)",
        "",
        "| process | CPU µs an order | resident MB |",
        "|---|---|---|",
        *(
            f"| {name} | {used:,.0f} | {most['memory_mb'].get(name, '')} |"
            for name, used in _descending(most["cpu_us_an_order"])
        ),
        f"| **all** | {most['cpu_us']:,.0f} | |",
    ]


def _waits(name: str, spell: Mapping[str, Any]) -> str:
    cells = [f"{spell['accepted'] / spell['sending_s']:,.0f}"]
    for waits in (spell["accept_ms"], spell["confirm_ms"]):
        cells += [f"{waits[p]:,.0f}" for p in ("p50", "p95", "p99")]
    return f"| {name} | {' | '.join(cells)} | {spell['cpu_us']:,.0f} |"


def _batches(entry: Mapping[str, Any]) -> list[str]:
    row = entry["result"]
    return [
        "| | orders a minute |",
        "|---|---|",
        f"| as it is | {row['plain_per_minute']:,.0f} |",
        f"| batches of one | {row['changed_per_minute']:,.0f} |",
        f"| **ratio** | **{row['ratio']:.1f}** |",
        "",
        f"Batches of one cost {row['cpu_ratio']:.1f} times the CPU an order.",
    ]


def _prices(entry: Mapping[str, Any]) -> list[str]:
    return [
        "| | CPU µs an order | from, to | share of throughput |",
        "|---|---|---|---|",
        *(
            f"| {name} | {row['cpu_us']:,.0f} | {row['cpu_us_least']:,.0f},"
            f" {row['cpu_us_most']:,.0f} | {row['share']:.1%} |"
            for name, row in entry["result"]["rows"].items()
        ),
        "",
        "![Price list](performance-prices.svg)",
    ]


def _sizes(entry: Mapping[str, Any]) -> list[str]:
    result = entry["result"]
    found = [
        "| orders in the tables | orders a minute | CPU µs an order | largest service, MB |",
        "|---|---|---|---|",
        *(
            f"| {int(size):,} | {row['per_minute']:,.0f} | {row['cpu_us']:,.0f}"
            f" | {row['memory_mb']:,.0f} |"
            for size, row in result["rows"].items()
        ),
        "",
        f"Throughput differs by {result['spread']:.0%}.",
    ]
    if lag := result.get("lag"):
        found += [
            "",
            f"A backlog of {lag['events']:,} events was gone in {lag['seconds']:,.0f} s.",
            "",
            "| resident MB | before | at most | after |",
            "|---|---|---|---|",
            *(
                f"| {name} | {lag['before_mb'][name]:,.0f} | {highest:,.0f}"
                f" | {lag['after_mb'][name]:,.0f} |"
                for name, highest in lag["highest_mb"].items()
            ),
        ]
    return found


def _outage(entry: Mapping[str, Any]) -> list[str]:
    return [*_said(entry), "", "![Outage](performance-outage.svg)"]


def _hour(entry: Mapping[str, Any]) -> list[str]:
    return [*_said(entry), "", "![Memory over an hour](performance-hour.svg)"]


def _said(entry: Mapping[str, Any]) -> list[str]:
    return ["```text", *(line.strip() for line in entry["lines"]), "```"]


SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "endtoend": _endtoend,
    "batches": _batches,
    "peer": _said,
    "floor": _said,
    "outage": _outage,
    "sizes": _sizes,
    "prices": _prices,
    "edge": _said,
    "replicas": _said,
    "hour": _hour,
}


def plots(results: Results) -> dict[str, str]:
    """Return the plots of what was measured: file name and SVG."""
    found = {}
    if "endtoend" in results:
        used = results["endtoend"]["result"]["closed"]["cpu_us_an_order"]
        found["performance-cpu.svg"] = bars("CPU of an order, µs", _descending(used))
    if "prices" in results:
        rows = results["prices"]["result"]["rows"]
        costs = {name: row["cpu_us"] for name, row in rows.items()}
        found["performance-prices.svg"] = bars("What it costs, CPU µs an order", _descending(costs))
    if "outage" in results:
        found["performance-outage.svg"] = _outage_plot(results["outage"]["result"])
    if "hour" in results:
        found["performance-hour.svg"] = _hour_plot(results["hour"]["result"])
    return found


def bars(title: str, rows: Sequence[tuple[str, float]]) -> str:
    """Draw one bar for each row, to the right of zero; what is below zero is noise, and grey."""
    longest = max([1.0, *(abs(value) for _, value in rows)])
    parts = []
    for number, (name, value) in enumerate(rows):
        y = HEAD + number * (BAR + GAP)
        wide = (WIDTH - LEFT - RIGHT) * abs(value) / longest
        colour = COLOURS[0] if value >= 0 else "#999"
        parts += [
            _text(LEFT - 8, y + BAR - 5, name, "end"),
            f"<rect x='{LEFT}' y='{y}' width='{wide:.1f}' height='{BAR}' fill='{colour}'/>",
            _text(LEFT + wide + 6, y + BAR - 5, f"{value:,.0f}"),
        ]
    return _svg(title, HEAD + len(rows) * (BAR + GAP) + GAP, parts)


def curves(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    shaded: tuple[float, float] | None = None,
) -> str:
    """Draw values over seconds, from zero; `shaded` is a time that is marked."""
    points = [point for line in series.values() for point in line] or [(0.0, 0.0)]
    last, highest = max(1.0, *(x for x, _ in points)), max(1.0, *(y for _, y in points))
    left, wide, top = 70, WIDTH - 90, HEAD

    def place(x: float, y: float) -> tuple[float, float]:
        return left + wide * x / last, top + PLOT * (1 - y / highest)

    parts = []
    if shaded is not None:
        begin, end = place(shaded[0], 0)[0], place(shaded[1], 0)[0]
        box = f"x='{begin:.1f}' y='{top}' width='{end - begin:.1f}' height='{PLOT}'"
        parts.append(f"<rect {box} fill='#d43c35' opacity='0.13'/>")
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        drawn = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in line)
        parts.append(f"<polyline points='{drawn}' fill='none' stroke='{colour}' stroke-width='2'/>")
        parts.append(_text(left + 8, top + 16 + 16 * number, name, colour=colour))
    parts += [
        _text(left - 6, top + 10, f"{highest:,.0f}", "end"),
        _text(left - 6, top + PLOT, "0", "end"),
    ]
    for tick in range(TICKS + 1):
        seconds = last * tick / TICKS
        x, y = place(seconds, 0)
        parts.append(_text(x, y + 18, f"{seconds:.0f} s", "middle"))
    return _svg(title, top + PLOT + 30, parts)


def _outage_plot(result: Mapping[str, Any]) -> str:
    looks = result["looks"]
    series = {
        "accepted": [(at, accepted) for at, accepted, _ in looks],
        "at their end": [(at, ended) for at, _, ended in looks],
        "waiting": [(at, accepted - ended) for at, accepted, ended in looks],
    }
    title = f"Gateway away, {result['rate']:.0f} orders a second"
    return curves(title, series, shaded=(result["began_s"], result["healed_s"]))


def _hour_plot(result: Mapping[str, Any]) -> str:
    looks = result["looks"]
    series = {part: [(at, sizes[part]) for at, sizes in looks] for part in looks[0][1]}
    return curves(f"Resident MB, {result['rate']:.0f} orders a second", series)


def _descending(values: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda each: -each[1])


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0f}' {FONT}>",
            "<rect width='100%' height='100%' fill='#fff'/>",
            f"<text x='8' y='20' font-weight='600'>{html.escape(title)}</text>",
            *parts,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, said: str, anchor: str = "start", *, colour: str = "#1b1f24") -> str:
    place = f"x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{colour}'"
    return f"<text {place}>{html.escape(said)}</text>"
