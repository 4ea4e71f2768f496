"""Walk every state that a model can reach, breadth first, and say which rules break, and how."""

import time
from array import array
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

STATES_MAX = 5_000_000
NO_END = "no way to an end"

S = TypeVar("S", bound=Hashable)


class Step(NamedTuple, Generic[S]):
    """What may happen next. A fault may happen, and need not: nobody may wait for one."""

    label: str
    state: S
    fault: bool = False


class Model(Protocol[S]):
    """A protocol whose states are values; equal states are one state."""

    @property
    def name(self) -> str:
        """What is configured."""

    def start(self) -> S:
        """Where it begins."""

    def steps(self, state: S) -> Iterable[Step[S]]:
        """Everything that may happen in a state."""

    def broken(self, state: S) -> Iterable[str]:
        """The rules that do not hold in this state, each as a sentence."""

    def broken_end(self, state: S) -> Iterable[str]:
        """The rules that do not hold although nothing is left to happen but faults."""

    def end(self, state: S) -> str:
        """What a quiet end is counted as."""


@dataclass(slots=True)
class Report:
    """What a walk found: for each broken rule the shortest schedule that breaks it."""

    name: str
    states: int = 0
    seconds: float = 0.0
    complete: bool = True
    broken: dict[str, list[str]] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        more = "" if self.complete else "+"
        figures = f"{self.states:>9,}{more} states {self.seconds:6.1f} s  broken {len(self.broken)}"
        schedules = [f"    {rule}: {' | '.join(how)}" for rule, how in self.broken.items()]
        return "\n".join([f"{figures}  {self.name}", *schedules])


class _Walk(Generic[S]):
    """The states met so far, each with the step that first led to it."""

    def __init__(self, start: S) -> None:
        self.numbers: dict[S, int] = {start: 0}
        self.came_from = array("q", [-1])
        self.labels: list[str] = [""]
        self.causes: list[array[int]] = [array("q")]

    def reach(self, step: Step[S], number: int) -> bool:
        """Note a step from a state; True when what it leads to is new."""
        known = self.numbers.setdefault(step.state, len(self.labels))
        new = known == len(self.labels)
        if new:
            self.came_from.append(number)
            self.labels.append(step.label)
            self.causes.append(array("q"))
        if not step.fault:
            self.causes[known].append(number)
        return new

    def schedule(self, number: int) -> list[str]:
        """The steps that led to a state, fewest first found."""
        steps = []
        while number > 0:
            steps.append(self.labels[number])
            number = self.came_from[number]
        return steps[::-1]

    def dead(self, ends: Sequence[int]) -> Iterator[int]:
        """Yield the states from which no end can be reached, unless by a fault."""
        alive = bytearray(len(self.labels))
        todo = list(ends)
        for number in todo:
            alive[number] = 1
        while todo:
            for cause in self.causes[todo.pop()]:
                if not alive[cause]:
                    alive[cause] = 1
                    todo.append(cause)
        return (number for number, lives in enumerate(alive) if not lives)


def explore(model: Model[S], states_max: int = STATES_MAX, *, first_only: bool = False) -> Report:
    """Visit every state, at most `states_max`; with `first_only`, stop at the first broken rule.

    A report that is not complete proves nothing except what it found broken.
    """
    began = time.perf_counter()
    report = Report(model.name)
    start = model.start()
    walk = _Walk(start)
    ends: list[int] = []
    todo = deque([start])
    while todo and len(walk.labels) < states_max and not (first_only and report.broken):
        state = todo.popleft()
        number = walk.numbers[state]
        faults_only = True
        for step in model.steps(state):
            faults_only = faults_only and step.fault
            if walk.reach(step, number):
                todo.append(step.state)
        rules = [*model.broken(state)]
        if faults_only:
            ends.append(number)
            report.ends[model.end(state)] += 1
            rules += model.broken_end(state)
        for rule in rules:
            if rule not in report.broken:
                report.broken[rule] = walk.schedule(number)
    report.complete = not todo
    if report.complete and (stuck := next(walk.dead(ends), None)) is not None:
        report.broken[NO_END] = walk.schedule(stuck)
    report.states = len(walk.labels)
    report.seconds = time.perf_counter() - began
    return report
