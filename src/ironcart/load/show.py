"""Showing how a run goes: a progress bar on a terminal, else a plain line a second."""

import asyncio
import sys
import time
from collections.abc import Callable

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ironcart.load.figures import Tally
from ironcart.load.plan import Plan

BAR_INTERVAL_S = 0.25
LINE_INTERVAL_S = 1.0

Tell = Callable[[str], None]


async def show(plan: Plan, tally: Tally, tell: Tell) -> None:
    """Show progress until cancelled; `tell` takes the plain lines when there is no terminal."""
    if sys.stdout.isatty():
        await _show_bar(plan, tally)
    else:
        await _show_lines(tally, tell)


async def _show_bar(plan: Plan, tally: Tally) -> None:
    total = plan.orders or plan.duration_s or None
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("starting", total=total)
        rates = _Rates(tally)
        while True:
            await asyncio.sleep(BAR_INTERVAL_S)
            done = tally.terminal if plan.orders else time.monotonic() - tally.started_at
            progress.update(task, completed=min(done, total or done), description=rates.line())


async def _show_lines(tally: Tally, tell: Tell) -> None:
    rates = _Rates(tally)
    while True:
        await asyncio.sleep(LINE_INTERVAL_S)
        tell(f"{time.strftime('%H:%M:%S')}  {rates.line()}")


class _Rates:
    """Rates since about a second ago."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._before = (time.monotonic(), tally.accepted, tally.statuses["confirmed"])
        self._rates = (0.0, 0.0)

    def line(self) -> str:
        tally = self._tally
        now = (time.monotonic(), tally.accepted, tally.statuses["confirmed"])
        elapsed_s = now[0] - self._before[0]
        if elapsed_s >= LINE_INTERVAL_S:
            accepted, confirmed = now[1] - self._before[1], now[2] - self._before[2]
            self._rates = (accepted / elapsed_s, confirmed / elapsed_s)
            self._before = now
        under_way = tally.accepted - tally.terminal
        trouble = {
            "retries": tally.retries,
            "refused": tally.refused.total(),
            "unknown": tally.unknown,
            "not sent": tally.not_sent,
        }
        shown = "".join(f"  {what} {count:,}" for what, count in trouble.items() if count)
        return (
            f"accepted {tally.accepted:,} ({self._rates[0]:,.0f}/s)  "
            f"confirmed {tally.statuses['confirmed']:,} ({self._rates[1]:,.0f}/s)  "
            f"under way {under_way:,}{shown}"
        )
