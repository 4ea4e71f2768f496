"""What a run does, decided before it begins: which rows, in which order, drawn from the seed."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chaos.row import Row


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. `orders` is 0 in the short run, which lasts as long as its rows do.

    `budget_s` ends the short run's faults after so many seconds (0: never); `rows_min` is how many
    rows must have had their turn by then.
    """

    seed: int
    rate: float
    orders: int = 0
    minutes: float = 0.0
    every_s: float = 1.0
    only: tuple[str, ...] = ()
    settle_s: float = 120.0
    drain_s: float = 240.0
    budget_s: float = 0.0
    rows_min: int = 0

    @property
    def long(self) -> bool:
        """Whether rows are repeated until the time is over."""
        return self.minutes > 0

    @property
    def duration_s(self) -> float:
        """Seconds of load; 0: until it is stopped."""
        return self.minutes * 60


@dataclass(frozen=True, slots=True)
class Turn:
    """One injection to be: the row, how often it had its turn before, and its own generator."""

    row: Row
    number: int
    draw: random.Random


def choose(rows: Sequence[Row], options: Options) -> tuple[list[Row], dict[str, str]]:
    """Return the rows of this run, and why each of the others is left out."""
    chosen: list[Row] = []
    left_out: dict[str, str] = {}
    for row in rows:
        if options.only and not any(each.lower() in row.name.lower() for each in options.only):
            continue
        if row.long and not options.long and not options.only:
            left_out[row.name] = "for the long run only"
        elif why := row.lacks():
            left_out[row.name] = why
        else:
            chosen.append(row)
    return chosen, left_out


def turns(rows: Sequence[Row], options: Options) -> Iterator[Turn]:
    """Yield the injections in order: each row once, in the long run again and again, reshuffled."""
    order = random.Random(f"{options.seed}/order")  # noqa: S311 - repeatable, not secret
    number = 0
    while rows:
        for row in order.sample(rows, len(rows)):
            own = random.Random(f"{options.seed}/{row.name}/{number}")  # noqa: S311 - as above
            yield Turn(row, number, own)
        number += 1
        if not options.long:
            return
