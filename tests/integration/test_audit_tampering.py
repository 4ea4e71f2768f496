"""Whoever rules the database rewrites the audit trail: an outsider finds it, and says where."""

import asyncio
import hashlib
import json
import random
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from audit_parts import Audited
from notifications_audit_parts import migrate
from typer.testing import CliRunner

from ironcart.cli.audit import app
from ironcart.embedded.postgres import Postgres
from ironcart.services.audit.app import STREAM_NAMES
from ironcart.toolkit import signing
from ironcart.verify.auditing import judge
from ironcart.verify.facts import CannotReadError

CHECKPOINTS = 12
SEED = 20261121
TABLES = ("entries", "links", "checkpoints")

Connection = Any


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


@pytest.fixture(scope="module")
def original(
    postgres: Postgres, postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """A trail that nobody has touched: the name of its database, and its folder."""
    name, folder = f"test_{secrets.token_hex(8)}", tmp_path_factory.mktemp("audit")

    async def fill() -> None:
        await migrate(postgres.url_of(name), "audit")
        audited = Audited(postgres.url_of(name), folder)
        await audited.keep(STREAM_NAMES, 3)
        await audited.fill(random.Random(SEED), CHECKPOINTS)
        await audited.keep(STREAM_NAMES, 2)
        await audited.database.close()
        await execute(audited.url, "CREATE SCHEMA kept")
        for table in TABLES:
            await execute(audited.url, f"CREATE TABLE kept.{table} AS TABLE audit.{table}")

    asyncio.run(execute(postgres_url, f"CREATE DATABASE {name}"))
    asyncio.run(fill())
    yield name, folder
    asyncio.run(execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def audited(
    original: tuple[str, Path], postgres: Postgres, tmp_path: Path
) -> AsyncIterator[Audited]:
    """The trail, to be tampered with; it is put back afterwards."""
    name, folder = original
    shutil.copytree(folder, tmp_path / "copy")
    found = Audited(postgres.url_of(name), tmp_path / "copy")
    yield found
    await found.database.close()
    for table in TABLES:
        again = f"INSERT INTO audit.{table} SELECT * FROM kept.{table}"
        await execute(found.url, f"DELETE FROM audit.{table}; {again}")


@asynccontextmanager
async def superuser(audited: Audited) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(audited.url, server_settings={"search_path": "audit"})
    async with connection.transaction():
        yield connection
    await connection.close()


def an_hour_later() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


async def last(connection: Connection, stream: str) -> int:
    found: int = await connection.fetchval(
        "SELECT max(stream_seq) FROM links WHERE stream = $1", stream
    )
    return found


def signed(audited: Audited, stream: str) -> list[int]:
    """Where checkpoints have signed this stream, each place once."""
    heads = [head for line in audited.lines() for head in json.loads(line)["heads"]]
    return sorted({head["stream_seq"] for head in heads if head["stream"] == stream})


async def rechain(connection: Connection, stream: str, first: int) -> None:
    """Make every link anew, as the service would have."""
    digest = hashlib.sha256(stream.encode()).digest()
    rows = await connection.fetch(
        "SELECT *, (extract(epoch FROM stored_at) * 1000000)::bigint AS us FROM entries"
        " WHERE stream = $1 ORDER BY stream_seq",
        stream,
    )
    for row in rows:
        names = ("subject", "event_id", "type", "aggregate_id", "headers")
        text = "\0".join([*(row[name] for name in names), str(row["us"]), ""]).encode()
        stored = hashlib.sha256(text + row["body"]).digest()
        digest = hashlib.sha256(digest + row["stream_seq"].to_bytes(8, "big") + stored).digest()
        if row["stream_seq"] >= first:
            await connection.execute(
                "UPDATE links SET hash = $3 WHERE stream = $1 AND stream_seq = $2",
                stream,
                row["stream_seq"],
                digest,
            )


def altered(column: str, value: str) -> Callable[[Connection, str, int], Awaitable[int]]:
    async def tamper(connection: Connection, stream: str, seq: int) -> int:
        where = "WHERE stream = $1 AND stream_seq = $2"
        done = await connection.execute(
            f"UPDATE entries SET {column} = {value} {where}", stream, seq
        )
        assert done == "UPDATE 1"
        return seq

    return tamper


async def link_altered(connection: Connection, stream: str, seq: int) -> int:
    await connection.execute(
        "UPDATE links SET hash = sha256(hash) WHERE stream = $1 AND stream_seq = $2", stream, seq
    )
    return seq


def link_said_to_be_of(version: int) -> Callable[[Connection, str, int], Awaitable[int]]:
    async def tamper(connection: Connection, stream: str, seq: int) -> int:
        where = "WHERE stream = $1 AND stream_seq = $2"
        await connection.execute(f"UPDATE links SET version = {version} {where}", stream, seq)
        return seq

    return tamper


def deleted(*tables: str) -> Callable[[Connection, str, int], Awaitable[int]]:
    async def tamper(connection: Connection, stream: str, seq: int) -> int:
        for table in tables:
            await connection.execute(
                f"DELETE FROM {table} WHERE stream = $1 AND stream_seq = $2", stream, seq
            )
        return seq

    return tamper


async def swapped(connection: Connection, stream: str, seq: int) -> int:
    """Two entries take each other's place."""
    other = seq - 1 if seq > 1 else seq + 1
    for now, then in ((seq, 0), (other, seq), (0, other)):
        await connection.execute("ALTER TABLE entries DROP CONSTRAINT entries_stream_seq_check")
        await connection.execute(
            "UPDATE entries SET stream_seq = $3 WHERE stream = $1 AND stream_seq = $2",
            stream,
            now,
            then,
        )
        await connection.execute(
            "ALTER TABLE entries ADD CONSTRAINT entries_stream_seq_check CHECK (true)"
        )
    return min(seq, other)


async def inserted(connection: Connection, stream: str, seq: int) -> int:
    """One that never was, and all that follow move on by a place."""
    for at in range(await last(connection, stream), seq - 1, -1):
        await connection.execute(
            "UPDATE entries SET stream_seq = stream_seq + 1 WHERE stream = $1 AND stream_seq = $2",
            stream,
            at,
        )
    await connection.execute(
        "INSERT INTO entries SELECT stream, $2, subject, 'x', type, aggregate_id, headers,"
        " 'never was', stored_at FROM entries WHERE stream = $1 AND stream_seq = $3",
        stream,
        seq,
        seq + 1,
    )
    return seq


TAMPERINGS: dict[str, Callable[[Connection, str, int], Awaitable[int]]] = {
    "an altered body": altered("body", "body || 'x'"),
    "an altered subject": altered("subject", "subject || 'x'"),
    "an altered event id": altered("event_id", "event_id || 'x'"),
    "an altered type": altered("type", "type || 'x'"),
    "another aggregate": altered("aggregate_id", "aggregate_id || 'x'"),
    "altered headers": altered("headers", "replace(headers, '00-0', '11-1')"),
    "another time": altered("stored_at", "stored_at + interval '1 microsecond'"),
    "an altered link": link_altered,
    "a link said to be of version 1": link_said_to_be_of(1),
    "a link said to be of version 3": link_said_to_be_of(3),
    "a deleted entry": deleted("entries"),
    "a deleted link": deleted("links"),
    "a deleted entry with its link": deleted("entries", "links"),
    "two entries swapped": swapped,
    "an inserted entry": inserted,
}


async def test_a_trail_that_nobody_touched_holds(audited: Audited) -> None:
    report = await audited.judge()
    assert (report.faults, report.unjudged) == ([], [])
    assert report.checkpoints["last"] == CHECKPOINTS
    for each in report.streams:
        assert each["signed"] == signed(audited, each["stream"])[-1]
        assert each["seq"] == each["entries"] == each["signed"] + 2 or each["seq"] > each["signed"]


@pytest.mark.parametrize("kind", TAMPERINGS)
@pytest.mark.parametrize("seed", range(2))
async def test_what_was_changed_is_found_where_it_begins(
    audited: Audited, kind: str, seed: int
) -> None:
    draw = random.Random(f"{SEED} {kind} {seed}")
    stream = draw.choice(STREAM_NAMES)
    async with superuser(audited) as connection:
        seq = draw.randint(1, signed(audited, stream)[-1])
        first = await TAMPERINGS[kind](connection, stream, seq)
    report = await audited.judge()
    assert [fault.split(":")[0] for fault in report.faults] == [f"{stream} {first}"]


@pytest.mark.parametrize("seed", range(4))
async def test_a_chain_that_was_made_anew_is_shown_by_the_first_checkpoint_that_it_fails(
    audited: Audited, seed: int
) -> None:
    draw = random.Random(f"{SEED} anew {seed}")
    stream = draw.choice(STREAM_NAMES)
    places = signed(audited, stream)
    seq = draw.randint(1, places[-1])
    async with superuser(audited) as connection:
        await altered("body", "'another'")(connection, stream, seq)
        await rechain(connection, stream, seq)
    (fault,) = (await audited.judge()).faults
    begin = max((place for place in places if place < seq), default=0) + 1
    end = min(place for place in places if place >= seq)
    assert fault.startswith(f"{stream} {begin}: the chain adds up, but checkpoint ")
    assert f"places {begin} to {end} had other entries" in fault or begin == end


@pytest.mark.parametrize("seed", range(3))
async def test_a_tail_that_was_cut_is_missed(audited: Audited, seed: int) -> None:
    draw = random.Random(f"{SEED} tail {seed}")
    stream = draw.choice(STREAM_NAMES)
    seq = draw.randint(1, signed(audited, stream)[-1])
    async with superuser(audited) as connection:
        for table in ("entries", "links"):
            await connection.execute(
                f"DELETE FROM {table} WHERE stream = $1 AND stream_seq >= $2", stream, seq
            )
    (fault,) = (await audited.judge()).faults
    assert fault.startswith(f"{stream} {seq}: the chain ends before it")


async def test_a_stream_that_is_gone_is_missed(audited: Audited) -> None:
    async with superuser(audited) as connection:
        await connection.execute("DELETE FROM entries WHERE stream = 'PAYMENTS'")
        await connection.execute("DELETE FROM links WHERE stream = 'PAYMENTS'")
    (fault,) = (await audited.judge()).faults
    assert fault.startswith("PAYMENTS 1: the chain ends before it")


def rewrite(audited: Audited, lines: list[str]) -> None:
    (file,) = audited.export.glob("*.jsonl")
    file.write_text("".join(f"{line}\n" for line in lines))


def taken_out(lines: list[str], at: int) -> list[str]:
    return lines[:at] + lines[at + 1 :]


def changed(lines: list[str], at: int) -> list[str]:
    other = re.sub(
        r'"stream_seq":(\d+)', lambda m: f'"stream_seq":{int(m[1]) + 1}', lines[at], count=1
    )
    return [*lines[:at], other, *lines[at + 1 :]]


def exchanged(lines: list[str], at: int) -> list[str]:
    return [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]


def spoiled(lines: list[str], at: int) -> list[str]:
    return [*lines[:at], lines[at][:40], *lines[at + 1 :]]


def headless(lines: list[str], at: int) -> list[str]:
    return lines[at + 1 :]


@pytest.mark.parametrize("spoil", [taken_out, changed, exchanged, spoiled])
@pytest.mark.parametrize("seed", range(2))
async def test_an_export_that_was_tampered_with_is_found_at_the_first_bad_checkpoint(
    audited: Audited, spoil: Callable[[list[str], int], list[str]], seed: int
) -> None:
    at = random.Random(f"{SEED} {spoil} {seed}").randint(0, CHECKPOINTS - 3)
    rewrite(audited, spoil(audited.lines(), at))
    (fault,) = (await audited.judge()).faults
    assert re.match(rf"checkpoint {at + 1}\b", fault)


async def test_an_export_without_its_beginning_is_not_taken_for_a_whole_one(
    audited: Audited,
) -> None:
    rewrite(audited, headless(audited.lines(), 3))
    (fault,) = (await audited.judge()).faults
    assert fault.startswith("checkpoint 1 is not there")
    assert (await audited.judge(first=5)).ok


async def test_an_export_that_was_cut_is_told_by_the_copy_and_by_who_remembers(
    audited: Audited,
) -> None:
    rewrite(audited, audited.lines()[:-2])
    # The copies in the database are as good, and so young that the export may be on its way.
    assert (await audited.judge()).ok
    (fault,) = (await audited.judge(first=CHECKPOINTS)).faults
    assert fault == f"checkpoint {CHECKPOINTS} is not there"
    async with superuser(audited) as connection:
        await connection.execute("DELETE FROM checkpoints WHERE number > $1", CHECKPOINTS - 2)
        # It is under no hash, so it counts for nothing.
        await connection.execute("UPDATE links SET linked_at = '2199-01-01'")
    report = await judge(replace(audited.request(), now=an_hour_later))
    assert not report.faults
    assert all("under no checkpoint" in each for each in report.unjudged)
    assert report.unjudged


async def test_a_checkpoint_forged_in_the_database_is_not_believed(audited: Audited) -> None:
    async with superuser(audited) as connection:
        await connection.execute(
            "INSERT INTO checkpoints SELECT number + 1, key_id,"
            " replace(line, '\"number\":' || number, '\"number\":' || number + 1) FROM checkpoints"
            " WHERE number = $1",
            CHECKPOINTS,
        )
    (fault,) = (await audited.judge()).faults
    assert fault.startswith(f"checkpoint {CHECKPOINTS + 1}: its signature is wrong")


async def test_another_key_or_none_is_said_to_be_wrong(audited: Audited, tmp_path: Path) -> None:
    stranger = signing.generate(tmp_path / "stranger.key")
    (fault,) = (await audited.judge(public_keys=[stranger])).faults
    assert "which is none of those given" in fault
    with pytest.raises(CannotReadError, match="is no public key"):
        await audited.judge(public_keys=[audited.key])


async def test_what_is_trusted_is_not_read_again(audited: Audited) -> None:
    places = {stream: signed(audited, stream) for stream in STREAM_NAMES}
    stream = next(name for name, found in places.items() if len(found) > 2)
    async with superuser(audited) as connection:
        await altered("body", "'x'")(connection, stream, 1)
    assert (await audited.judge()).faults
    report = await audited.judge(first=CHECKPOINTS - 1)
    assert report.ok
    whole = sum(found[-1] for found in places.values())
    assert sum(each["entries"] for each in report.streams) < whole


async def test_the_command_says_by_its_exit_code_what_it_found(audited: Audited) -> None:
    def run(*more: str) -> tuple[int, str]:
        words = ["verify", "--database-url", audited.url, "--checkpoints", str(audited.export)]
        done = CliRunner().invoke(app, [*words, "--public-key", str(audited.public_key), *more])
        return done.exit_code, done.output

    code, said = await asyncio.to_thread(run, "--json")
    assert (code, json.loads(said)["ok"]) == (0, True)
    async with superuser(audited) as connection:
        await altered("body", "'x'")(connection, "ORDERS", 2)
    code, said = await asyncio.to_thread(run)
    assert code == 1
    assert "CHANGED ORDERS 2: its entry or its link is not what it was" in said
    code, said = await asyncio.to_thread(run, "--checkpoints", str(audited.folder / "nowhere"))
    assert code == 2
    assert "cannot read" in said
