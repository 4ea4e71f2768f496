"""A row of the chaos table: one fault, how it is injected and healed, and the proof that it bit."""

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from chaos.follow import LoadLog, Meters
from chaos.outside import Outside
from chaos.system import System


@dataclass(slots=True)
class Felt:
    """What one injection did, as seen from outside; times are seconds since the epoch."""

    injected_at: float = 0.0
    healed_at: float = 0.0
    seen: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    dead_letters: int = 0

    @property
    def bit(self) -> bool:
        """Whether there is proof, and nothing that was to be seen was missed."""
        return bool(self.seen) and not self.missed

    def inject(self) -> None:
        """Note that the fault begins now."""
        self.injected_at = time.time()

    def heal(self) -> None:
        """Note that nothing of the fault is left."""
        self.healed_at = time.time()

    def saw(self, what: str, *, proof: object = True) -> None:
        """Note what was seen, or that it was looked for in vain."""
        (self.seen if proof else self.missed).append(what)


@dataclass(frozen=True, slots=True)
class Arena:
    """Everything a row works with; `draw` is seeded by the run, the row and its repetition."""

    system: System
    outside: Outside
    load: LoadLog
    meters: Meters
    draw: random.Random
    long: bool


Act = Callable[[Arena, Felt], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Row:
    """One fault. `act` injects, waits for proof and heals, whatever happens in between.

    `lacks` says what this machine lacks for it (nothing: it can run); a row that is `long` is
    for the long run only.
    """

    name: str
    act: Act
    lacks: Callable[[], str] = lambda: ""
    long: bool = False
