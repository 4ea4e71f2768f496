"""A database that went back in time: what was told is folded back, and nothing is repeated."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import pytest

from heart_parts import TRACE_ID, Bench, Pong, answered, bench, kept, until, working
from ironcart.embedded.postgres import Postgres
from ironcart.toolkit.broker import Outgoing, reader
from ironcart.toolkit.database import STARTED_AT, Connection, Database, Transaction
from ironcart.toolkit.envelope import seal
from ironcart.toolkit.loop import Message
from ironcart.toolkit.outcomes import Done, Fact, Outcome, Unavailable
from ironcart.toolkit.recovery import Fold, Memory, OwnFact, Recovery, recover

KEPT = ("batches", "events", "inbox", "failures", "said")


async def fold(facts: Sequence[OwnFact], connection: Connection) -> None:
    """Beta's table: what it has said to whom."""
    await connection.execute(
        "INSERT INTO said SELECT * FROM unnest($1::text[], $2::int[])",
        [fact.aggregate_id for fact in facts],
        [fact.version for fact in facts],
    )


async def say(messages: Sequence[Message], transaction: Transaction) -> list[Outcome]:
    """Answer every Ping once, and write down that it was answered."""
    outcomes: list[Outcome] = []
    for message in messages:
        name, n = message.data.name, message.data.n
        known = await transaction.connection.fetchval(
            "SELECT 1 FROM said WHERE name = $1 AND n = $2", name, n
        )
        if not known:
            await transaction.connection.execute("INSERT INTO said VALUES ($1, $2)", name, n)
        outcomes.append(Done() if known else answered(message))
    return outcomes


@dataclass
class Restorable:
    """Beta with a table of its own, and a copy of everything as it was at one moment."""

    parts: Bench

    @property
    def recovery(self) -> Recovery:
        return self.folding(fold)

    async def ping(self, *names: str) -> None:
        before = len(await self.parts.pongs())
        await self.parts.send(*(self.parts.topology.ping(name) for name in names))
        async with working(self.parts, say) as at_work:
            await self.parts.ponged(before + len(names))
            await self.parts.settled()
            await at_work.drain()
        await self.parts.marked()

    async def back_up(self) -> None:
        for table in KEPT:
            await self.parts.database.execute(f"CREATE TABLE old_{table} AS TABLE {table}")

    async def restore(self) -> None:
        for table in KEPT:
            await self.parts.database.execute(f"TRUNCATE {table}")
            await self.parts.database.execute(f"INSERT INTO {table} TABLE old_{table}")

    async def told(self, *places: tuple[str, int]) -> None:
        """Publish Pongs of which the database knows nothing: names and versions."""
        for name, version in places:
            fact = Fact(name, version, Pong(name, version))
            key, body = seal("beta", fact, trace_id=TRACE_ID, causation_id=None)
            subject = self.parts.topology.subjects["Pong"]
            await self.parts.send(Outgoing(str(key), subject, body, {}))

    def folding(self, fold: Fold) -> Recovery:
        """A recovery that folds in another way."""
        topology, chassis = self.parts.topology, self.parts.chassis
        memory = Memory(topology.pongs.name, {topology.subjects["Pong"]: Pong}, fold)
        parts = chassis.history, self.parts.broker, self.parts.database
        return Recovery(*parts, [topology.beta], memory)

    async def said(self) -> list[str]:
        rows = await self.parts.database.fetch("SELECT name FROM said ORDER BY name")
        return [row["name"] for row in rows]


@pytest.fixture
async def beta(broker_url: str, database_url: str) -> AsyncIterator[Restorable]:
    async with bench(broker_url, database_url) as parts:
        await parts.database.execute("CREATE TABLE said (name text, n int, UNIQUE (name, n))")
        yield Restorable(parts)


@pytest.fixture(params=["at once", "one by one"])
def folded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts are read and folded all at once, or each by itself."""
    if request.param == "one by one":
        monkeypatch.setattr(recover, "FOLD_FACTS", 1)
        monkeypatch.setattr(reader, "READ_MESSAGES_MAX", 1)


async def test_what_was_told_after_the_backup_is_folded_back_and_nothing_is_told_again(
    beta: Restorable,
) -> None:
    await beta.ping("a", "b")
    await beta.back_up()
    await beta.ping("c", "d", "e")
    told = await beta.parts.pongs()
    await beta.restore()
    assert await beta.said() == ["a", "b"]

    assert await beta.recovery.run()
    assert await beta.said() == ["a", "b", "c", "d", "e"]
    assert await beta.recovery.watch(), "the consumers have yet to start over"
    async with working(beta.parts, say, sweeping=True) as at_work:
        await beta.parts.settled()
        await at_work.drain()
    assert await beta.parts.pongs() == told
    assert not await beta.recovery.watch()
    assert not await beta.recovery.behind()


async def test_a_healthy_history_is_left_alone(beta: Restorable) -> None:
    assert not await beta.recovery.run()
    await beta.ping("a", "b")
    await beta.parts.commit(Fact("c", 1, Pong("c", 1)))  # committed, and not yet published
    assert not await beta.recovery.run()
    # Published, and the mark of it lost.
    await beta.parts.database.execute("UPDATE batches SET first_seq = NULL")
    assert not await beta.recovery.run()


async def test_inputs_that_led_to_nothing_told_are_missed_too(beta: Restorable) -> None:
    async def in_silence(messages: Sequence[Message], _: Transaction) -> list[Outcome]:
        return [Done() for _ in messages]

    await beta.back_up()
    await beta.parts.send(beta.parts.topology.ping("a"))
    async with working(beta.parts, in_silence) as at_work:
        await beta.parts.settled()
        await at_work.drain()
    assert not await beta.recovery.behind()
    await beta.restore()
    assert await beta.recovery.run()
    info = await beta.parts.consumer_info()
    assert info["num_pending"] == 1, "the message is to be delivered again"


async def test_a_recovery_that_was_cut_short_is_finished_by_the_next_start(
    beta: Restorable,
) -> None:
    await beta.ping("a")
    await beta.back_up()
    await beta.ping("b")
    await beta.restore()
    await beta.parts.database.execute("INSERT INTO recoveries (began_at) VALUES (now())")
    assert await beta.recovery.run()
    assert await beta.said() == ["a", "b"]
    row = await beta.parts.database.fetchrow("SELECT count(*) AS n FROM recoveries")
    assert row is not None
    assert row["n"] == 1


async def test_what_the_backup_thought_unpublished_is_marked_where_the_stream_has_it(
    beta: Restorable,
) -> None:
    await beta.parts.commit(Fact("a", 1, Pong("a", 1)))
    await beta.back_up()
    async with working(beta.parts, say, sweeping=True):
        await beta.parts.marked()
    await beta.ping("b")
    told = await beta.parts.pongs()
    await beta.restore()
    assert await beta.recovery.run()
    assert [seq for _, seq in await beta.parts.sequences()] == [1, 2]
    assert await beta.parts.pongs() == told


@pytest.mark.usefixtures("folded")
async def test_an_aggregates_facts_are_folded_in_order_whatever_the_order_they_were_told_in(
    beta: Restorable,
) -> None:
    seen: dict[str, list[int]] = {}

    async def note(facts: Sequence[OwnFact], _: Connection) -> None:
        for fact in facts:
            seen.setdefault(fact.aggregate_id, []).append(fact.version)

    # The second fact of d was never published.
    await beta.told(("a", 2), ("b", 1), ("d", 3), ("a", 3), ("c", 1), ("d", 1), ("a", 1), ("c", 2))
    assert await beta.folding(note).run()
    assert seen == {"a": [1, 2, 3], "b": [1], "c": [1, 2], "d": [1, 3]}
    # A rebuild reads them in the order of commit.
    order = "SELECT version FROM events WHERE aggregate_id = $1 ORDER BY batch_no, batch_pos"
    for name, versions in seen.items():
        rows = await beta.parts.database.fetch(order, name)
        assert [row["version"] for row in rows] == versions


async def test_a_fact_that_waited_for_an_earlier_one_when_a_recovery_was_cut_short_is_not_forgotten(
    beta: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "FOLD_FACTS", 1)
    monkeypatch.setattr(recover, "LOOK_BACK_MESSAGES", 0)
    monkeypatch.setattr(reader, "READ_MESSAGES_MAX", 1)
    seen: list[tuple[str, int]] = []
    ill = True

    async def note(facts: Sequence[OwnFact], _: Connection) -> None:
        if ill and any(fact.aggregate_id == "c" for fact in facts):
            raise Unavailable("the database has gone away")
        seen.extend((fact.aggregate_id, fact.version) for fact in facts)

    await beta.told(("a", 2), ("b", 1), ("c", 1), ("a", 1))
    recovery = beta.folding(note)
    with pytest.raises(Unavailable):
        await recovery.run()
    assert seen == [("b", 1)]
    ill = False
    await recovery.finish()
    assert seen == [("b", 1), ("c", 1), ("a", 1), ("a", 2)]


@pytest.mark.usefixtures("folded")
async def test_what_a_constraint_refuses_is_folded_together_with_what_makes_it_right(
    beta: Restorable,
) -> None:
    database = beta.parts.database
    await database.execute("CREATE TABLE shelf (units int CHECK (units >= 0))")
    await database.execute("INSERT INTO shelf VALUES (0)")

    async def count(facts: Sequence[OwnFact], connection: Connection) -> None:
        units = sum(1 if fact.aggregate_id.startswith("in") else -1 for fact in facts)
        await connection.execute("UPDATE shelf SET units = units + $1", units)

    await beta.told(("out-1", 1), ("out-2", 1), ("in-1", 1), ("in-2", 1), ("in-3", 1))
    assert await beta.folding(count).run()
    row = await database.fetchrow("SELECT units FROM shelf")
    assert row is not None
    assert row["units"] == 1


async def test_a_stream_that_is_shorter_than_the_history_is_not_written_to(
    beta: Restorable,
) -> None:
    await beta.ping("a", "b")
    stream = beta.parts.topology.pongs
    await beta.parts.broker.api(f"STREAM.DELETE.{stream.name}")
    await beta.parts.topology.provision(beta.parts.broker)
    with pytest.raises(Unavailable, match="run `ironcart republish`"):
        await beta.recovery.run()
    assert await kept(beta.parts.broker, stream.name) == []


async def test_a_database_that_starts_anew_lends_nothing_until_it_is_trusted(
    own_postgres: Postgres,
) -> None:
    url = own_postgres.url_of("postgres")
    database, plain = Database(url, "public", "test", guarded=True), Database(url, "public", "test")

    async def started_at() -> datetime:
        row = await plain.fetchrow(STARTED_AT)
        assert row is not None
        found: datetime = row[0]
        return found

    with pytest.raises(Unavailable, match="not yet compared"):
        await database.execute("SELECT 1")
    database.trust(await started_at())
    await database.execute("SELECT 1")
    await asyncio.to_thread(own_postgres.kill)
    await asyncio.to_thread(own_postgres.start)

    async def noticed() -> bool:
        await database.healthy()
        return database.restarted

    await until(noticed)
    with pytest.raises(Unavailable, match="not yet compared"):
        await database.execute("SELECT 1")
    database.trust(await started_at())
    await database.execute("SELECT 1")
    await database.close()
    await plain.close()
