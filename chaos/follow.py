"""What is followed all along: the load generator's own log, and counters that restart with their
process."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from chaos.outside import Key

COUNTED = {
    "duplicates": ("ironcart_outcomes_total", {"outcome": "duplicate"}),
    "retries": ("ironcart_outcomes_total", {"outcome": "retry"}),
    "parked": ("ironcart_outcomes_total", {"outcome": "park"}),
    "done": ("ironcart_outcomes_total", {"outcome": "done"}),
}


@dataclass(slots=True)
class Meters:
    """Counters of all services, added up over restarts: what a killed process had counted since it
    was last looked at is not in them, so they are lower bounds."""

    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0.0))
    _last: dict[tuple[str, Key], float] = field(default_factory=dict)

    def take(self, service: str, metrics: Mapping[Key, float]) -> None:
        """Take in what a service says now."""
        for what, (name, labels) in COUNTED.items():
            wanted = set(labels.items())
            for key, value in metrics.items():
                if key[0] != name or not wanted <= set(key[1]):
                    continue
                before = self._last.get((service, key), 0.0)
                self.totals[what] += value - before if value >= before else value
                self._last[service, key] = value


@dataclass(slots=True)
class Sent:
    """One order as the load generator knows it."""

    first_sent_at: float
    accepted_at: float = 0.0
    order_id: str = ""


@dataclass(slots=True)
class LoadLog:
    """The load generator's log, read as far as it has been written."""

    folder: Path
    by_key: dict[str, Sent] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    accepted: int = 0
    _read: dict[Path, int] = field(default_factory=dict)

    def read(self) -> None:
        """Take in what was written since; a line that is not whole yet is left."""
        for path in sorted(self.folder.glob("*.jsonl")):
            at = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(at)
                fresh = file.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]
            self._read[path] = at + len(whole)
            for line in whole.splitlines():
                self._take(json.loads(line))

    def count(self, *statuses: str) -> int:
        """Say how many answers had one of these statuses; "0" is no answer."""
        self.read()
        return sum(self.statuses.get(status, 0) for status in statuses)

    def _take(self, line: dict[str, object]) -> None:
        if line["kind"] == "run":
            return
        at = datetime.fromisoformat(str(line["at"])).timestamp()
        known = self.by_key.setdefault(str(line["key"]), Sent(at))
        if line["kind"] != "answer":
            return
        status = str(line["status"])
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == "202" and not known.order_id and not line.get("other_body"):
            known.order_id, known.accepted_at = str(line["order_id"]), at
            self.accepted += 1
