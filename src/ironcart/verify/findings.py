"""What a check says: figures, where they come from, and the faults with a few examples each."""

from dataclasses import dataclass, field
from typing import Any

EXAMPLES_MAX = 10
NAME_WIDTH = 3
TITLE_WIDTH = 18


@dataclass(slots=True)
class Faults:
    """Faults gathered by kind; keeps every count, but only the first few examples."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str = "", count: int = 1) -> None:
        """Count a fault of this kind, `example` being whom it hit."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        known = self.examples.setdefault(kind, [])
        if example and len(known) < EXAMPLES_MAX:
            known.append(example)

    def merge(self, other: "Faults") -> None:
        """Take over what `other` has gathered."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            known = self.examples.setdefault(kind, [])
            known += other.examples[kind][: EXAMPLES_MAX - len(known)]

    def __bool__(self) -> bool:
        return bool(self.counts)

    def lines(self) -> list[str]:
        """Return one line for each kind of fault."""
        found = []
        for kind, count in self.counts.items():
            examples = self.examples[kind]
            more = ["…"] if len(examples) == EXAMPLES_MAX < count else []
            shown = f" ({', '.join(examples + more)})" if examples else ""
            found.append(f"{kind}: {count:,}{shown}" if shown or count > 1 else kind)
        return found


@dataclass(slots=True)
class Finding:
    """The verdict on one invariant."""

    name: str
    title: str
    source: str
    figures: dict[str, int | str]
    faults: Faults

    @property
    def ok(self) -> bool:
        """Whether the invariant holds."""
        return not self.faults

    def lines(self) -> list[str]:
        """Return the verdict in a line, then a line for each kind of fault."""
        figures = ", ".join(
            f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
            for name, value in self.figures.items()
        )
        verdict = "ok    " if self.ok else "BROKEN"
        head = f"{self.name:<{NAME_WIDTH}} {self.title:<{TITLE_WIDTH}} {verdict}"
        return [
            f"{head} {figures} [{self.source}]",
            *(f"      {line}" for line in self.faults.lines()),
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the verdict for a machine to read."""
        return {
            "name": self.name,
            "title": self.title,
            "ok": self.ok,
            "figures": self.figures,
            "source": self.source,
            "faults": [
                {"kind": kind, "count": count, "examples": self.faults.examples[kind]}
                for kind, count in self.faults.counts.items()
            ],
        }
