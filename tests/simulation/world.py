"""What a schedule has in common: the loop, the dice, what went wrong, and what was exercised."""

import random
from collections import Counter
from dataclasses import dataclass, field

from simulation.clock import Process, SimulatedLoop


@dataclass
class Weather:
    """How unwell the world is: all zero once it has healed."""

    lose_request: float = 0.0
    lose_answer: float = 0.0
    lose_commit_answer: float = 0.0
    lose_statement: float = 0.0
    call_fails: float = 0.0
    call_answer_lost: float = 0.0
    slow: float = 0.05


@dataclass
class World:
    """One schedule."""

    loop: SimulatedLoop
    rng: random.Random
    tracing: bool = False
    quiet_net: bool = False
    weather: Weather = field(default_factory=Weather)
    seen: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)

    def happens(self, chance: float) -> bool:
        """Throw the dice."""
        return chance > 0 and self.rng.random() < chance

    def note(self, what: str) -> None:
        """Count something that a run is meant to exercise."""
        self.seen[what] += 1
        if self.tracing:
            self.say(f"** {what}")

    def say(self, text: str, process: Process | None = None) -> None:
        """Add a line to the trace."""
        if self.tracing:
            who = process.name if process else "-"
            self.trace.append(f"{self.loop.time() - 1_000:9.4f}  {who:<10} {text}")

    def latency_s(self) -> float:
        """How long one way takes: mostly next to nothing."""
        if self.quiet_net:
            return 0.001
        if self.rng.random() < self.weather.slow:
            return self.rng.uniform(0.05, 1.0)
        return self.rng.uniform(0.0002, 0.004)
