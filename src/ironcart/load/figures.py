"""What a run achieved: counts, rates and percentiles, for a person and for a machine."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PERCENTILES = (50, 95, 99)
MS_PER_S = 1_000
TERMINAL = ("confirmed", "rejected", "cancelled")


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of values in ascending order; 0 when there are none."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(slots=True)
class Tally:
    """Counts of one run as it goes; latencies are in seconds.

    `accept_s` runs from the moment an order was due to its 202, retries included, so that a slow
    server cannot hide behind a generator that waits for it. `settle_s` is `updated_at` minus
    `created_at` of the terminal order, both by the server's clock.
    """

    started_at: float = 0.0
    sending_s: float = 0.0
    sent: int = 0
    not_sent: int = 0
    late: int = 0
    retries: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    probes: int = 0
    accept_s: list[float] = field(default_factory=list)
    settle_s: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    first_created_at: float = math.inf
    last_updated_at: float = -math.inf

    @property
    def terminal(self) -> int:
        """How many accepted orders have come to their end."""
        return self.statuses.total()

    def per_second(self) -> tuple[float, float]:
        """Return accepted a second while sending, and confirmed a second from first to last."""
        accepted = self.accepted / self.sending_s if self.sending_s else 0.0
        span_s = self.last_updated_at - self.first_created_at
        return accepted, self.statuses["confirmed"] / span_s if span_s > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the summary for a machine; latencies in milliseconds."""
        accepted_per_s, confirmed_per_s = self.per_second()
        return {
            "sent": self.sent,
            "not_sent": self.not_sent,
            "late": self.late,
            "retries": self.retries,
            "accepted": self.accepted,
            "refused": self.refused.total(),
            "unknown": self.unknown,
            "terminal": self.terminal,
            "not_terminal": self.accepted - self.terminal,
            "confirmed": self.statuses["confirmed"],
            "rejected": self.statuses["rejected"],
            "cancelled": self.statuses["cancelled"],
            "sending_s": round(self.sending_s, 3),
            "accepted_per_s": round(accepted_per_s, 2),
            "confirmed_per_s": round(confirmed_per_s, 2),
            "accept_ms": _milliseconds(self.accept_s),
            "terminal_ms": _milliseconds(self.settle_s),
        }

    def lines(self) -> list[str]:
        """Return the summary for a person."""
        accepted_per_s, confirmed_per_s = self.per_second()
        confirmed, rejected, cancelled = (
            f"{status} {self.statuses[status]:,}" for status in TERMINAL
        )
        lines = [
            f"accepted   {self.accepted:,} of {self.sent:,} sent in {self.sending_s:.1f} s",
            f"terminal   {self.terminal:,}: {confirmed}, {rejected}, {cancelled}",
            f"rates      accepted {accepted_per_s:,.1f}/s, confirmed {confirmed_per_s:,.1f}/s",
            f"accept     {_shown(self.accept_s)} from due to 202",
            f"to the end {_shown(self.settle_s)} from accept to terminal",
        ]
        trouble = {
            "not terminal": self.accepted - self.terminal,
            "no answer (unknown)": self.unknown,
            "not sent in time": self.not_sent,
            "sent late": self.late,
            "retries": self.retries,
            **{f"refused: {reason}": count for reason, count in self.refused.items()},
        }
        shown = ", ".join(f"{what} {count:,}" for what, count in trouble.items() if count)
        return [*lines, f"trouble    {shown}"] if shown else lines


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        f"p{percent}": round(percentile(ordered, percent) * MS_PER_S, 1) for percent in PERCENTILES
    }


def _shown(seconds: list[float]) -> str:
    return "  ".join(f"{name} {value:,.0f} ms" for name, value in _milliseconds(seconds).items())
