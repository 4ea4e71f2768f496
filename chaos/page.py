"""The report as one self-contained page: a timeline as inline SVG, the table, verify's words."""

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from chaos.judge import HARMS, Injection, Total
from chaos.run import Result

WIDTH, LEFT, TOP = 1200, 56, 12
PANEL, GAP, SPANS = 150, 34, 16
TICKS = 10
MOST, CUT_AT = 0.97, 1.5
FRAME = "fill='none' stroke='#bbb'"
FONT = "font-family='system-ui' font-size='11'"
STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1240px; color: #1b1f24 }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; width: 100% } td, th { padding: 3px 8px; text-align: right }
th { border-bottom: 2px solid #888; font-weight: 600 } tr + tr td { border-top: 1px solid #ddd }
td:first-child, th:first-child, td:last-child, th:last-child { text-align: left }
td:last-child { color: #555; font-size: 12px } dt { font-weight: 600; float: left; width: 12em }
dd { margin-left: 13em } .ok { color: #11692e } .bad { color: #b3211c; font-weight: 700 }
svg { width: 100%; height: auto } pre { background: #f5f6f8; padding: 1em; overflow-x: auto }
"""


def render(facts: Mapping[str, str], rows: Sequence[Total], result: Result) -> str:
    """Return the whole page."""
    good = facts["verdict"].startswith("every invariant")
    listed = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        for name, value in facts.items()
        if name != "verdict"
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Chaos report</title>"
        f"<style>{STYLE}</style><h1>Chaos report</h1>"
        f"<p class='{'ok' if good else 'bad'}'>{html.escape(facts['verdict'])}</p>"
        f"<dl>{listed}</dl><h2>Timeline</h2>{timeline(result)}"
        f"<h2>Faults</h2>{_table(rows)}<h2>ironcart verify</h2>{_verify(result)}</html>\n"
    )


def timeline(result: Result) -> str:
    """Draw accepted and ended orders a second, lag, and when each fault was there."""
    begin = result.started_at
    accepted = _per_second((s.accepted_at for s in result.load.by_key.values()), begin)
    ended = _per_second((e.ended_at or 0.0 for e in result.ended.values()), begin)
    lag = {int(s.at - begin): float(s.lag) for s in result.samples if s.lag is not None}
    seconds = max([1, *accepted, *ended, *lag]) + 1
    height = TOP + 2 * (PANEL + GAP) + SPANS + 30
    second = TOP + PANEL + GAP
    parts = [
        f"<svg viewBox='0 0 {WIDTH} {height}' xmlns='http://www.w3.org/2000/svg' {FONT}>",
        *(_span(each, begin, seconds, height) for each in result.injections),
        *_panel(TOP, "orders a second", seconds, [("#2463c9", accepted), ("#11852f", ended)]),
        *_panel(second, "messages not acknowledged", seconds, [("#b35a00", lag)]),
        f"<text x='{LEFT + 120}' y='{TOP + 10}' fill='#2463c9'>accepted</text>",
        f"<text x='{LEFT + 180}' y='{TOP + 10}' fill='#11852f'>at their end</text>",
        f"<text x='{LEFT + 260}' y='{TOP + 10}' fill='#b3211c'>faults (names on pointing)</text>",
    ]
    step = max(1, seconds // TICKS)
    for at in range(0, seconds, step):
        x = _x(at, seconds)
        parts.append(f"<text x='{x:.1f}' y='{height - 6}' text-anchor='middle'>{at} s</text>")
    return "".join([*parts, "</svg>"])


def _per_second(times: Iterable[float], begin: float) -> dict[int, float]:
    counted = Counter(int(at - begin) for at in times if at >= begin)
    found = {second: float(count) for second, count in counted.items()}
    return {second: found.get(second, 0.0) for second in range(max(found, default=0) + 1)}


def _x(second: float, seconds: int) -> float:
    return LEFT + (WIDTH - LEFT - 8) * second / seconds


def _panel(
    top: int,
    title: str,
    seconds: int,
    lines: Sequence[tuple[str, Mapping[int, float]]],
) -> list[str]:
    values = sorted(value for _, line in lines for value in line.values()) or [0.0]
    # A backlog that drains in a second would flatten all the rest: what is higher is cut off.
    highest = max(1.0, min(values[-1], CUT_AT * values[int(MOST * (len(values) - 1))]))
    found = [
        f"<rect x='{LEFT}' y='{top}' width='{WIDTH - LEFT - 8}' height='{PANEL}' {FRAME}/>",
        f"<text x='{LEFT + 4}' y='{top + 10}'>{title}</text>",
        f"<text x='{LEFT - 4}' y='{top + 10}' text-anchor='end'>{highest:,.0f}</text>",
        f"<text x='{LEFT - 4}' y='{top + PANEL}' text-anchor='end'>0</text>",
    ]
    for colour, line in lines:
        points = " ".join(
            f"{_x(at, seconds):.1f},{top + PANEL * (1 - min(1.0, value / highest)):.1f}"
            for at, value in sorted(line.items())
        )
        found.append(
            f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='1.2'/>"
        )
    return found


def _span(injection: Injection, begin: float, seconds: int, height: int) -> str:
    felt = injection.felt
    x = _x(felt.injected_at - begin, seconds)
    wide = max(1.5, _x(felt.healed_at - begin, seconds) - x)
    told = html.escape(f"{injection.row}: {'; '.join(felt.seen + felt.missed)}", quote=True)
    colour = "#d43c35" if felt.bit else "#7a00cc"
    bar = height - 30 - SPANS
    return (
        f"<g><title>{told}</title><rect x='{x:.1f}' y='{TOP}' width='{wide:.1f}'"
        f" height='{bar - TOP}' fill='{colour}' opacity='0.13'/>"
        f"<rect x='{x:.1f}' y='{bar}' width='{wide:.1f}' height='{SPANS}' fill='{colour}'/></g>"
    )


def _table(rows: Sequence[Total]) -> str:
    heads = ("fault", "injected", "bit", "in flight", *HARMS, "duplicates", "recovered", "proof")
    found = [f"<tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"]
    for row in rows:
        recovered = "-" if row.recovered_s is None else f"{row.recovered_s:.1f} s"
        cells = [html.escape(row.name), str(row.times), str(row.bit), str(row.in_flight)]
        cells += [str(row.harms[harm]) for harm in HARMS]
        cells += [str(row.duplicates), recovered, html.escape(row.proof)]
        found.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table>{''.join(found)}</table>"


def _verify(result: Result) -> str:
    lines = []
    for finding in result.verify.get("findings", []):
        figures = ", ".join(f"{name} {value}" for name, value in finding["figures"].items())
        verdict = "ok" if finding["ok"] else "BROKEN"
        lines.append(f"{finding['name']:<4}{finding['title']:<20}{verdict:<8}{figures}")
        lines += [
            f"        {fault['kind']}: {fault['count']} {fault['examples']}"
            for fault in finding["faults"]
        ]
    return f"<pre>{html.escape(chr(10).join(lines) or result.verify_text)}</pre>"
