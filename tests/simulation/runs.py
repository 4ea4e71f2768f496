"""Many schedules at once: a crash at every step of a short one, and what must have happened."""

from collections.abc import Iterable, Iterator, Mapping

from simulation.defects import Defect
from simulation.schedule import Plan, Verdict, run

# A run of many seeds in which one of these never happened has proved nothing about it.
SOMETIMES = (
    "COMMIT whose answer was lost",
    "ack that the broker forgot",
    "answer of the broker that was lost",
    "atomic publish",
    "batch refused for a duplicate",
    "batch swept",
    "broker outage",
    "call that was repeated",
    "connection cut",
    "crash",
    "database outage",
    "drain that nothing disturbed",
    "duplicate absorbed by the inbox",
    "duplicate after the dedupe window",
    "duplicate refused by its id",
    "freeze",
    "freeze beyond a lease",
    "job taken over",
    "messages lost with a connection",
    "nak",
    "order that was tried again",
    "parked message replayed",
    "redelivery",
    "request to the broker that was lost",
    "statement that was lost",
    "term",
)
NEVER = 10**9


def missing(seen: Mapping[str, int]) -> list[str]:
    """What should have been exercised and was not."""
    return [what for what in SOMETIMES if not seen.get(what)]


def every_step(stride: int = 1, offset: int = 0) -> Iterator[Verdict]:
    """The canonical schedule with one crash, at each step of each service in its turn."""
    for name in ("alpha", "beta"):
        steps = run(Plan(0, crash=name, crash_at=NEVER)).steps[name]
        for at in range(1 + offset, steps + 1, stride):
            yield run(Plan(0, crash=name, crash_at=at))


def first_broken(defect: Defect, seeds: Iterable[int]) -> Verdict | None:
    """The first schedule that notices a defect; None when none does."""
    with defect():
        return next((each for each in (run(Plan(seed)) for seed in seeds) if each.broken), None)
