"""Where checkpoints go, out of reach of whoever rules the database: a folder or an object store."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Sheet:
    """One checkpoint on its way out; `day` is its date, as in 2026-11-21."""

    number: int
    day: str
    line: str


class Target(Protocol):
    """A place to which checkpoints are added, and never changed in."""

    async def last(self, number_max: int) -> int:
        """The highest number that is there, up to `number_max`; raises `Unavailable`."""

    async def after(self, number: int) -> list[str]:
        """Some of the lines above a number, oldest first; raises `Unavailable`."""

    async def add(self, sheets: Sequence[Sheet]) -> int | None:
        """Add these, in order, whose numbers follow each other; what is there already stays.

        Returns the highest number that is there, which lies below them all, and nothing was added,
        when the one before them is not there. None when other bytes are there. Raises
        `Unavailable` when it may not have come to an end: it is done again, then.
        """

    async def close(self) -> None:
        """Let go of connections."""
