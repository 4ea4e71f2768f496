"""What befalls a schedule: drawn from its seed, over before it is judged."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from simulation.clock import Process
from simulation.world import Weather

if TYPE_CHECKING:
    from simulation.schedule import Schedule

ROUGH_S = 10.0
ACTIONS_MAX = 7
# Longer than a job's lease: somebody else has taken it over when the sleeper awakes.
LONG_FREEZE_S = 75.0


def plan(schedule: "Schedule") -> None:
    """Have between one and `ACTIONS_MAX` things go wrong within the first `ROUGH_S` seconds."""
    rng, world = schedule.world.rng, schedule.world
    for _ in range(rng.randint(1, ACTIONS_MAX)):
        act = rng.choices(list(ACTIONS), weights=list(ACTIONS.values()))[0]
        world.loop.outside(rng.uniform(0.0, ROUGH_S), act, schedule)
    if rng.random() < 0.5:
        start = rng.uniform(0.0, ROUGH_S / 2)
        world.loop.outside(start, _bad_weather, schedule)
        world.loop.outside(start + rng.uniform(0.5, 5.0), heal, schedule)


def _somebody(schedule: "Schedule") -> str | None:
    names = list(schedule.running)
    return schedule.world.rng.choice(names) if names else None


def heal(schedule: "Schedule") -> None:
    """End the bad weather."""
    schedule.world.weather = Weather()


def _bad_weather(schedule: "Schedule") -> None:
    world, draw = schedule.world, schedule.world.rng.random
    weather = world.weather
    if draw() < 0.5:
        weather.lose_request, weather.lose_answer = draw() * 0.2, draw() * 0.3
    if draw() < 0.5:
        weather.lose_commit_answer, weather.lose_statement = draw() * 0.4, draw() * 0.05
    if draw() < 0.6:
        weather.call_fails, weather.call_answer_lost = draw() * 0.6, draw() * 0.6
    weather.slow = draw() * 0.4


def _crash(schedule: "Schedule") -> None:
    if name := _somebody(schedule):
        schedule.crash(name)


def _crash_at_a_step(schedule: "Schedule") -> None:
    """A crash within the next few steps of a process, rather than at a moment."""
    if name := _somebody(schedule):
        process = schedule.running[name].process
        process.crash_at = process.steps + schedule.world.rng.randint(1, 60)


def _freeze(schedule: "Schedule") -> None:
    rng = schedule.world.rng
    if name := _somebody(schedule):
        long = rng.random() < 0.1
        schedule.freeze(name, LONG_FREEZE_S if long else rng.uniform(0.2, 8.0))


def _freeze_in_a_call(schedule: "Schedule") -> None:
    """Whoever makes the next call to the outside sleeps until somebody else has taken it over."""

    def freeze(process: Process) -> None:
        if "beta-2" not in schedule.running:
            schedule.start("beta-2")
        for name, toy in list(schedule.running.items()):
            if toy.process is process:
                schedule.freeze(name, LONG_FREEZE_S)

    schedule.outside.in_call.append(freeze)


def _drain(schedule: "Schedule") -> None:
    if name := _somebody(schedule):
        schedule.drain(name)


def _disconnect(schedule: "Schedule") -> None:
    if name := _somebody(schedule):
        schedule.world.note("connection cut")
        schedule.running[name].client.disconnect()


def _broker_outage(schedule: "Schedule") -> None:
    schedule.broker_outage(schedule.world.rng.uniform(0.2, 6.0))


def _database_outage(schedule: "Schedule") -> None:
    server = schedule.world.rng.choice(list(schedule.databases.values()))
    server.stop()
    schedule.world.loop.outside(schedule.world.rng.uniform(0.2, 6.0), server.start)


def _forgotten_acks(schedule: "Schedule") -> None:
    consumer = schedule.world.rng.choice(list(schedule.jetstream.consumers.values()))
    for seq in sorted(consumer.settled)[-3:]:
        consumer.unsettle(seq)


ACTIONS: dict[Callable[["Schedule"], None], int] = {
    _crash: 3,
    _crash_at_a_step: 8,
    _freeze: 3,
    _freeze_in_a_call: 1,
    _drain: 3,
    _disconnect: 2,
    _broker_outage: 3,
    _database_outage: 3,
    _forgotten_acks: 2,
}
