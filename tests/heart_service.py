"""Alpha and beta as processes: `python heart_service.py alpha|beta TAG`, set up as `run` does.

Alpha takes `POST /pings` and hears of Pongs; beta answers every Ping, as its action says.
"""

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from msgspec import Struct

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from heart_parts import Ping, Pong, Topology, answered, name_of
from ironcart.toolkit import lifecycle
from ironcart.toolkit.database import Transaction
from ironcart.toolkit.history import Cause
from ironcart.toolkit.http import Endpoint, json_response
from ironcart.toolkit.http.routes import Answer, Call, read_struct, trace_of
from ironcart.toolkit.lifecycle import Service, Wiring
from ironcart.toolkit.loop import Chassis, Message, Subscription
from ironcart.toolkit.outcomes import Done, Fact, Outcome
from ironcart.toolkit.settings import environment

SLOW_S = 1.0


class Settings(Struct, frozen=True):
    """What only these two are told."""

    patience_s: float = 1.0


async def answer(messages: Sequence[Message], _: Transaction) -> list[Outcome]:
    """Beta: answer, at once or slowly or never."""
    actions = {message.data.action for message in messages}
    if "hang" in actions:
        await asyncio.Event().wait()
    if "slow" in actions:
        await asyncio.sleep(SLOW_S)
    return [answered(message) for message in messages]


async def hear(messages: Sequence[Message], _: Transaction) -> list[Outcome]:
    """Alpha: a Pong is good news."""
    return [Done() for _ in messages]


def pings(chassis: Chassis) -> Endpoint:
    """Alpha's endpoint: record a Ping, and say so when it is committed."""

    async def say(request: Call) -> Answer:
        ping, trace = await read_struct(request, Ping), trace_of(request)
        fact = Fact(ping.name, ping.n, ping)
        async with chassis.database.transaction() as connection:
            cause = Cause(trace.trace_id, trace)
            commit = await chassis.history.record(connection, [(fact, cause)])
        assert commit is not None
        chassis.outbox.hand_over(commit)
        return json_response({"id": commit.messages[0].message_id}, 202)

    return Endpoint("POST", "/pings", say)


def build_alpha(
    topology: Topology, chassis: Chassis, _settings: Settings, _: asyncio.Event
) -> Wiring:
    """Wire alpha, which goes on accepting without the broker."""
    kinds = {topology.subjects["Pong"]: Pong}
    return Wiring(
        endpoints=[pings(chassis)],
        subscriptions=[Subscription(topology.alpha, kinds, name_of, hear)],
        accepts_without_broker=True,
    )


def build_beta(
    topology: Topology, chassis: Chassis, _settings: Settings, _: asyncio.Event
) -> Wiring:
    """Wire beta."""
    kinds = {topology.subjects["Ping"]: Ping}
    return Wiring(subscriptions=[Subscription(topology.beta, kinds, name_of, answer)])


def service(name: str, topology: Topology) -> Service:
    """The card of one of the two."""
    build, durable = {
        "alpha": (build_alpha, topology.alpha),
        "beta": (build_beta, topology.beta),
    }[name]
    wire = partial(build, topology)
    return Service(name, topology.subjects, (durable,), Settings, wire)


if __name__ == "__main__":
    sys.exit(lifecycle.run(service(sys.argv[1], Topology(sys.argv[2])), environment()))
