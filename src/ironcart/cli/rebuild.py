"""`ironcart rebuild SERVICE`: folds a service's history into fresh tables and compares."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from ironcart.cli import address, services
from ironcart.cli.floors import patient
from ironcart.toolkit.database import Connection
from ironcart.toolkit.lifecycle import Service
from ironcart.toolkit.outcomes import Refused
from ironcart.toolkit.recovery import Compared, Memory, OwnFact, own_fact

READ_EVENTS_MAX = 2_000
DIFFERENCES_SHOWN_MAX = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """One row that the history and the live table do not agree on."""

    table: str
    where: str
    row: str


@dataclass(slots=True)
class Rebuilt:
    """What folding and comparing came to."""

    events: int
    rows: dict[str, int]
    differences: list[Difference]
    found: int = 0


def rebuild(
    service: Annotated[str, typer.Argument(help=f"One of {', '.join(services.NAMES)}.")],
    keep: Annotated[
        bool, typer.Option(help="Leave the fresh tables in the schema rebuilt_SERVICE.")
    ] = False,
    data: address.Data = address.DATA_DEFAULT,
) -> None:
    """Fold a service's history into fresh tables, and compare them with the live ones.

    Changes nothing of the service. Exit 1 when anything differs.
    """
    if service not in services.NAMES:
        raise Refused(f"there is no service {service}: use one of {', '.join(services.NAMES)}")
    card = services.find(service)
    url = address.find(data).databases[service]
    done = asyncio.run(_rebuild(card, url, keep=keep))
    counted = ", ".join(f"{count} {table}" for table, count in done.rows.items())
    print(f"{service}: folded {done.events} events into {counted}")
    for each in done.differences:
        print(f"{each.table}: only {each.where}: {each.row}")
    print(f"{done.found} differences")
    if done.found:
        raise typer.Exit(1)


async def _rebuild(card: Service, url: str, *, keep: bool) -> Rebuilt:
    if card.memory is None or not card.memory.kinds:
        return await _relink(url)
    fresh = f"rebuilt_{card.name}"
    database = patient(url, fresh, "rebuild")
    try:
        async with (
            database.acquire() as connection,
            connection.transaction(isolation="repeatable_read"),
        ):
            await _make_tables(connection, card.name, fresh)
            events = 0
            async for facts in _history(connection, card.name, card.memory):
                await card.memory.fold(facts, connection)
                events += len(facts)
            done = Rebuilt(events, {}, [])
            for compared in card.memory.compared:
                await _compare(connection, compared, card.name, fresh, done)
            if not keep:
                await connection.execute(f"DROP SCHEMA {fresh} CASCADE")
        return done
    finally:
        await database.close()


async def _make_tables(connection: Connection, live: str, fresh: str) -> None:
    await connection.execute(f"DROP SCHEMA IF EXISTS {fresh} CASCADE")
    await connection.execute(f"CREATE SCHEMA {fresh}")
    rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", live)
    for row in rows:
        name = row["tablename"]
        await connection.execute(
            f'CREATE TABLE {fresh}."{name}" (LIKE {live}."{name}" INCLUDING ALL)'
        )


async def _history(
    connection: Connection, schema: str, memory: Memory
) -> AsyncIterator[Sequence[OwnFact]]:
    """Everything that the service has said, in the order in which it was committed."""
    at = (0, -1)
    while True:
        rows = await connection.fetch(
            "SELECT batch_no, batch_pos, subject, body,"  # noqa: S608 - a schema of ours
            f" coalesce(stream_seq, 0) AS seq FROM {schema}.events"
            " WHERE (batch_no, batch_pos) > ($1, $2) ORDER BY batch_no, batch_pos LIMIT $3",
            *at,
            READ_EVENTS_MAX,
        )
        if not rows:
            return
        at = rows[-1]["batch_no"], rows[-1]["batch_pos"]
        facts = [own_fact(memory.kinds, row["subject"], row["body"], row["seq"]) for row in rows]
        yield [fact for fact in facts if fact is not None]


async def _compare(
    connection: Connection, compared: Compared, live: str, fresh: str, done: Rebuilt
) -> None:
    sides = {"live": live, "rebuilt": fresh}
    query = {side: compared.query.format(schema=schema) for side, schema in sides.items()}
    done.rows[compared.table] = await connection.fetchval(
        f"SELECT count(*) FROM ({query['live']}) AS q"  # noqa: S608 - a constant of ours
    )
    for side, other in (("live", "rebuilt"), ("rebuilt", "live")):
        unsettled = compared.unsettled.format(schema=live)
        rows = await connection.fetch(
            f"SELECT to_jsonb(d) AS row FROM (SELECT * FROM ({query[side]}) AS a"  # noqa: S608 - constants
            f" EXCEPT SELECT * FROM ({query[other]}) AS b) AS d WHERE NOT ({unsettled})"
        )
        done.found += len(rows)
        room = DIFFERENCES_SHOWN_MAX - len(done.differences)
        where = "in the live table" if side == "live" else "in the history"
        done.differences += [Difference(compared.table, where, row["row"]) for row in rows[:room]]


async def _relink(url: str) -> Rebuilt:
    """Audit says nothing itself: its links are folded again from its entries."""
    from ironcart.services.audit.app import STREAM_NAMES
    from ironcart.services.audit.handlers.chain import verify
    from ironcart.services.audit.store import Store

    database = patient(url, "audit", "rebuild")
    done = Rebuilt(0, {}, [])
    try:
        for stream in STREAM_NAMES:
            found = await verify(Store(database), stream)
            done.events += found.entries
            done.rows[f"links of {stream}"] = found.entries
            if found.first_bad is not None:
                done.found += 1
                where = f"in the links of {stream}"
                done.differences.append(Difference(stream, where, f"sequence {found.first_bad}"))
    finally:
        await database.close()
    return done
