"""Numbers for values, so that a state is a tuple of small integers and quick to compare."""

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Interned(Generic[T]):
    """Gives each value one number, from 0, for good."""

    def __init__(self, *first: T) -> None:
        self._values: list[T] = []
        self._numbers: dict[T, int] = {}
        for value in first:
            self.number(value)

    def number(self, value: T) -> int:
        """The number of a value, a new one when it is met for the first time."""
        number = self._numbers.setdefault(value, len(self._values))
        if number == len(self._values):
            self._values.append(value)
        return number

    def __getitem__(self, number: int) -> T:
        return self._values[number]
