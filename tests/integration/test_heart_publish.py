"""Atomic publishing to a real stream: all or none, each id once, and every unknown is said."""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator

import pytest

from heart_parts import Bench, Ping, Pong, Topology, bench, kept
from ironcart.embedded.nats_server import NatsServer
from ironcart.toolkit.broker import Broker, BrokerError, Outgoing, connection, publish
from ironcart.toolkit.broker.publisher import BATCH_MESSAGES_MAX, BATCH_MESSAGES_MIN
from ironcart.toolkit.outcomes import Fact, Unavailable


@pytest.fixture
async def parts(broker_url: str, database_url: str) -> AsyncIterator[Bench]:
    async with bench(broker_url, database_url) as found:
        yield found


@pytest.fixture
async def alpha(broker_url: str) -> AsyncIterator[Broker]:
    found = Broker(broker_url, "alpha")
    await found.connect()
    yield found
    await found.close()


def pings(topology: Topology, *numbers: int) -> list[Outgoing]:
    return [topology.ping("a", n) for n in numbers]


async def ids(broker: Broker, topology: Topology) -> dict[str, int]:
    """The sequence of every id in the stream; no id is there twice."""
    found = await kept(broker, topology.pings.name)
    by_id = {each.headers["Nats-Msg-Id"]: each.seq for each in found}
    assert len(by_id) == len(found)
    return by_id


async def test_sequences_are_contiguous_and_those_of_the_stream(alpha: Broker) -> None:
    topology = Topology()
    await topology.provision(alpha)
    groups = [pings(topology, *range(at, at + 200)) for at in (1, 201, 401)]

    seqs = await asyncio.gather(*(publish(alpha, group) for group in groups))

    stored = await ids(alpha, topology)
    for group, found in zip(groups, seqs, strict=True):
        assert found == list(range(found[0], found[0] + 200))
        assert found == [stored[each.message_id] for each in group]


async def test_fewer_than_five_go_singly_and_five_together(alpha: Broker) -> None:
    topology = Topology()
    await topology.provision(alpha)
    assert BATCH_MESSAGES_MIN == 5

    assert await publish(alpha, pings(topology, 1, 2, 3, 4)) == [1, 2, 3, 4]
    assert await publish(alpha, pings(topology, 5, 6, 7, 8, 9)) == [5, 6, 7, 8, 9]

    found = await kept(alpha, topology.pings.name)
    assert ["Nats-Batch-Id" in each.headers for each in found] == [False] * 4 + [True] * 5
    assert {each.headers["traceparent"][:3] for each in found} == {"00-"}


async def test_a_batch_with_known_ids_goes_singly_and_repeats_count_as_success(
    alpha: Broker,
) -> None:
    topology = Topology()
    await topology.provision(alpha)
    await publish(alpha, pings(topology, 1, 2, 3, 4, 5))

    batch = pings(topology, 6, 2, 7, 4, 8, 9)
    seqs = await publish(alpha, batch)

    stored = await ids(alpha, topology)
    assert len(stored) == 9
    assert seqs == [stored[each.message_id] for each in batch]
    assert seqs[1] == 2
    assert seqs[3] == 4


async def test_a_full_stream_is_an_outage_for_a_batch_and_for_single_messages(
    alpha: Broker,
) -> None:
    topology = Topology()
    await topology.provision(alpha, bytes_max=20_000)
    large = [
        Outgoing(secrets.token_hex(8), topology.subjects["Ping"], b"x" * 3_000, {})
        for _ in range(12)
    ]
    with pytest.raises(Unavailable):
        await publish(alpha, large)
    assert await kept(alpha, topology.pings.name) == []

    outcomes = await asyncio.gather(
        *(publish(alpha, [message]) for message in large), return_exceptions=True
    )
    stored = len(await kept(alpha, topology.pings.name))
    assert 0 < stored < len(large)
    assert sum(isinstance(each, Unavailable) for each in outcomes) == len(large) - stored


async def test_a_message_that_the_stream_will_never_take_is_refused(alpha: Broker) -> None:
    topology = Topology()
    await topology.provision(alpha)
    with pytest.raises(BrokerError):
        await publish(alpha, [topology.raw(b"x" * 1_000_001)])


async def test_a_subject_that_no_stream_takes_is_an_outage(alpha: Broker) -> None:
    nowhere = [Outgoing(secrets.token_hex(8), "nowhere.at.all", b"{}", {}) for _ in range(6)]
    for messages in (nowhere, nowhere[:1]):
        with pytest.raises(Unavailable):
            await publish(alpha, messages)


@pytest.mark.parametrize("count", [3, 50], ids=["singly", "atomically"])
async def test_an_unknown_outcome_is_an_outage_and_a_repeat_stores_each_once(
    own_broker: NatsServer, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    broker, topology = Broker(own_broker.url, "alpha"), Topology()
    await broker.connect()
    try:
        await topology.provision(broker)
        messages = pings(topology, *range(1, count + 1))
        os.kill(own_broker.pid, signal.SIGSTOP)
        try:
            with monkeypatch.context() as patient:
                patient.setattr(connection, "REQUEST_TIMEOUT_S", 0.3)
                with pytest.raises(Unavailable):
                    await publish(broker, messages)
        finally:
            os.kill(own_broker.pid, signal.SIGCONT)

        seqs = await publish(broker, messages)

        stored = await ids(broker, topology)
        assert seqs == [stored[each.message_id] for each in messages]
        assert sorted(seqs) == list(range(1, count + 1))
    finally:
        await broker.close()


async def test_a_commit_of_more_than_a_batch_holds_goes_in_chunks(parts: Bench) -> None:
    count = BATCH_MESSAGES_MAX + 5
    commit = await parts.commit(*(Fact("a", n, Pong("a", n)) for n in range(1, count + 1)))

    await parts.outbox._publish([commit])

    found = await parts.pongs()
    assert [each.event["version"] for each in found] == list(range(1, count + 1))
    assert len({each.headers["Nats-Batch-Id"] for each in found}) == 2
    assert await parts.marked() == [(each.event["id"], each.seq) for each in found]


async def test_large_events_go_in_chunks_that_the_connection_carries(parts: Bench) -> None:
    large = "x" * 900_000
    commit = await parts.commit(*(Fact("a", n, Pong("a", n, large)) for n in range(1, 11)))

    await parts.outbox._publish([commit])

    found = await parts.pongs()
    assert [each.event["version"] for each in found] == list(range(1, 11))
    assert await parts.marked() == [(each.event["id"], each.seq) for each in found]


def test_the_structs_of_these_tests_have_the_names_of_their_events() -> None:
    assert (Ping.__name__, Pong.__name__) == ("Ping", "Pong")
