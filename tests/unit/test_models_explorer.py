"""The explorer itself, on protocols whose faults are plain."""

from collections.abc import Iterator
from dataclasses import dataclass

from models.explorer import NO_END, Step, explore


@dataclass(frozen=True)
class Counting:
    """Counts up to `top`; `back` leads from a place to another, and `fault` is one way out."""

    top: int
    back: dict[int, int]
    fault: dict[int, int]
    name: str = "counting"

    def start(self) -> int:
        return 0

    def steps(self, state: int) -> Iterator[Step[int]]:
        if state in self.back:
            yield Step("back", self.back[state])
        elif state < self.top:
            yield Step("up", state + 1)
        if state in self.fault:
            yield Step("fault", self.fault[state], fault=True)

    def broken(self, state: int) -> Iterator[str]:
        if state == 7:
            yield "seven"

    def broken_end(self, state: int) -> Iterator[str]:
        if state % 2:
            yield "odd end"

    def end(self, state: int) -> str:
        return str(state)


def test_a_sound_protocol_is_walked_to_its_ends() -> None:
    report = explore(Counting(4, {}, {}))

    assert (report.states, report.complete, report.broken) == (5, True, {})
    assert dict(report.ends) == {"4": 1}


def test_a_broken_rule_is_told_with_the_shortest_schedule() -> None:
    report = explore(Counting(9, {}, {2: 6}))

    assert report.broken["seven"] == ["up", "up", "fault", "up"]
    assert "odd end" in report.broken


def test_a_circle_without_a_way_out_is_a_dead_end_even_if_a_fault_would_lead_out_of_it() -> None:
    report = explore(Counting(6, {2: 0}, {2: 6}))

    assert report.broken == {NO_END: []}


def test_a_walk_that_was_cut_short_says_so() -> None:
    report = explore(Counting(1_000, {}, {}), states_max=10)

    assert not report.complete
