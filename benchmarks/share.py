"""The whole system and the floor below it in turns: which share of it is reached."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from benchmarks import floor
from benchmarks.bed import Bed
from benchmarks.endtoend import CONNECTIONS, Spell, closed, warm_up
from benchmarks.floor import Floor


@dataclass(frozen=True, slots=True)
class Share:
    """Spells of the system, and floors before, between and after them."""

    floors: Sequence[Floor]
    spells: Sequence[Spell]

    @property
    def share(self) -> float:
        """Orders a minute of a spell over those of the floors around it; the median."""
        around = zip(self.floors, self.floors[1:], strict=False)
        return median(
            spell.per_minute / mean(each.per_minute for each in both)
            for spell, both in zip(self.spells, around, strict=True)
        )

    def lines(self) -> list[str]:
        """Return it for a person."""
        found = []
        for number, below in enumerate(self.floors):
            found += ["floor", *below.lines()]
            if number < len(self.spells):
                spell = self.spells[number]
                speed = f"{spell.per_minute:,.0f} a minute, {spell.cpu_us:,.0f} us an order"
                found += ["system", f"  {speed}"]
        return [*found, f"share of the floor {self.share:.0%}"]

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine."""
        return {
            "share": round(self.share, 3),
            "floors": [each.as_json() for each in self.floors],
            "spells": [each.as_json() for each in self.spells],
        }


async def measure(seconds: float, connections: int = CONNECTIONS, rounds: int = 2) -> Share:
    """Measure floor, system, floor, system, ... floor; each on servers of its own."""
    floors, spells = [await floor.measure()], list[Spell]()
    for _ in range(rounds):
        async with Bed() as bed:
            await warm_up(bed)
            spells.append(await closed(bed, seconds, connections))
        floors.append(await floor.measure())
    return Share(floors, spells)
