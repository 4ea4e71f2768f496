"""Whoever rules the database puts rows where no walk comes by, shows others other rows, or cuts off
what was signed: an outsider tells, or says that he cannot."""

import hashlib
from dataclasses import replace

import pytest
from aiohttp import web
from audit_parts import Audited, audited
from test_audit_objects import bucket
from test_audit_tampering import an_hour_later, rechain, rewrite, superuser

from ironcart.embedded.ports import free_port
from ironcart.services.audit.app import STREAM_NAMES
from ironcart.services.audit.gateway.objects import Objects
from ironcart.verify.auditing import judge
from ironcart.verify.facts import CannotReadError

__all__ = ["audited"]

FORGED = """INSERT INTO entries (stream, stream_seq, subject, event_id, type, aggregate_id, headers,
  body, stored_at) VALUES ({0}, 'orders.created', 'e', 'OrderRefunded', 'ORD-1', '{{}}', '{{}}',
  '2026-11-01')"""
LINKED = "INSERT INTO links VALUES ({0}, sha256('x'), '2199-01-01', 2)"
UNBOUND = """ALTER TABLE entries DROP CONSTRAINT entries_stream_seq_check;
  ALTER TABLE links DROP CONSTRAINT links_stream_seq_check;"""
ALLOWED = """ALTER TABLE entries DROP CONSTRAINT entries_pkey;
  ALTER TABLE entries ALTER stream DROP NOT NULL, ALTER stream_seq DROP NOT NULL;"""

GONE = "its entry is gone, and checkpoint 2 has it"


@pytest.fixture
async def trail(audited: Audited) -> Audited:
    """Two checkpoints over three entries of each stream, and nothing after them."""
    rounds = audited.rounds()
    for count in (1, 2):
        await audited.keep(STREAM_NAMES, count)
        await rounds.go()
    assert (await audited.judge()).ok
    return audited


async def as_superuser(audited: Audited, *statements: str) -> None:
    async with superuser(audited) as connection:
        for statement in statements:
            await connection.execute(statement)


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("DELETE FROM entries {0}; DELETE FROM links {0}", GONE),
        ("DELETE FROM entries {0}", GONE),
        ("DELETE FROM links {0}", "its link is not the one that checkpoint 2 has"),
        ("UPDATE links SET hash = '' {0}", "its link is not the one that checkpoint 2 has"),
    ],
)
async def test_what_a_checkpoint_is_trusted_for_has_to_be_there(
    trail: Audited, statement: str, fault: str
) -> None:
    assert (await trail.judge(first=2)).ok
    last = "WHERE stream = 'ORDERS' AND stream_seq = 3"
    await as_superuser(trail, statement.format(last))
    assert (await trail.judge(first=2)).faults == [f"ORDERS 3: {fault}"]


async def resign(audited: Audited) -> None:
    """Another checkpoint, over whatever is there now."""
    await audited.keep(["PAYMENTS"], 1)
    await audited.rounds().go()


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        (UNBOUND + FORGED.format("'ORDERS', -5"), "ORDERS -5: no entry or link can be there"),
        (UNBOUND + LINKED.format("'ORDERS', -5"), "ORDERS -5: no entry or link can be there"),
        (ALLOWED + FORGED.format("'ORDERS', NULL"), "ORDERS 0: no entry or link can be there"),
        (ALLOWED + FORGED.format("NULL, 7"), "audit.entries has a row of no stream"),
        (ALLOWED + FORGED.format("'ORDERS', 2"), "ORDERS 2:"),
        (ALLOWED + FORGED.format("'ORDERS', 3"), "ORDERS 3:"),
    ],
)
async def test_a_row_at_a_place_that_cannot_be_is_found(
    trail: Audited, statement: str, fault: str
) -> None:
    await as_superuser(trail, statement)
    assert any(each.startswith(fault) for each in (await trail.judge()).faults)
    await resign(trail)
    assert any(each.startswith(fault) for each in (await trail.judge()).faults)


async def test_a_second_row_at_the_last_place_is_found_without_the_catalogue(
    trail: Audited,
) -> None:
    again = "INSERT INTO links SELECT * FROM links WHERE stream = 'ORDERS' AND stream_seq = 3"
    await as_superuser(trail, "ALTER TABLE links DROP CONSTRAINT links_pkey", again)
    assert (await trail.judge()).faults == [
        "audit.links has no primary key: others may be shown other rows",
        "ORDERS 3: there are two links",
    ]


async def test_entries_beyond_a_gap_are_named_and_not_called_changed(trail: Audited) -> None:
    await as_superuser(trail, FORGED.format("'ORDERS', 1000000000000"))
    report = await trail.judge()
    assert not report.faults
    (told,) = report.unjudged
    assert told.startswith("ORDERS 1000000000000 and later: not chained, since 4 has not come yet")


@pytest.mark.parametrize("linked", [False, True])
async def test_a_stream_under_no_checkpoint_is_not_said_to_hold(
    trail: Audited, linked: bool
) -> None:
    await as_superuser(trail, FORGED.format("'FAKE', 1"))
    if linked:
        async with superuser(trail) as connection:
            await connection.execute(LINKED.format("'FAKE', 1"))
            await rechain(connection, "FAKE", 1)
    await resign(trail)
    report = await trail.judge()
    assert not report.faults
    (told,) = report.unjudged
    assert told.startswith("FAKE: under no checkpoint: it began after number 3, or somebody added")


async def test_a_trail_without_any_checkpoint_never_holds(trail: Audited) -> None:
    rewrite(trail, [])
    await as_superuser(
        trail, "DELETE FROM checkpoints", "UPDATE links SET linked_at = '2199-01-01'"
    )
    report = await trail.judge()
    assert (report.ok, report.faults) == (False, [])
    assert report.unjudged == ["there is no checkpoint: nothing is signed, or all were removed"]


async def test_lateness_is_told_by_the_signed_time_and_the_judges_own_clock(
    trail: Audited,
) -> None:
    await trail.keep(["ORDERS"], 1)
    assert (await trail.judge()).ok
    await as_superuser(trail, "UPDATE links SET linked_at = '2199-01-01'")
    report = await judge(replace(trail.request(), now=an_hour_later))
    (told,) = report.unjudged
    assert told.startswith("ORDERS 4 and later: chained, and under no checkpoint since ")
    await trail.rounds().go()
    # Nothing has come since: an old checkpoint vouches for all there is.
    assert (await judge(replace(trail.request(), now=an_hour_later))).ok


async def test_an_object_store_without_its_first_object_is_not_said_to_hold(
    audited: Audited,
) -> None:
    async with bucket() as store:
        headers = audited.folder / "headers"
        headers.write_text("Authorization: Bearer one\n")
        rounds = audited.rounds(target=Objects(store.url, headers))
        for _ in range(3):
            await audited.keep(STREAM_NAMES, 2)
            await rounds.go()
        await rounds.close()
        request = replace(
            audited.request(), checkpoints=store.url, headers={"Authorization": "Bearer one"}
        )
        newest = (await judge(request)).checkpoints
        del store.objects["/audit/00000000000000000001.json"]
        await as_superuser(
            audited, "DELETE FROM checkpoints", "UPDATE links SET linked_at = '2199-01-01'"
        )
        assert (await judge(request)).unjudged
        # Who remembers the newest one finds that it is still there, and what is not.
        (fault,) = (await judge(replace(request, expect=(3, newest["hash"])))).faults
        assert fault.startswith("checkpoint 1 is not there")


@pytest.mark.parametrize(
    ("statements", "fault"),
    [
        (
            ["CREATE POLICY one ON entries FOR SELECT USING (stream_seq > 1)"],
            "audit.entries has row security",
        ),
        (["ALTER TABLE entries ENABLE ROW LEVEL SECURITY"], "audit.entries has row security"),
        (
            ["ALTER TABLE links RENAME TO kept", "CREATE VIEW links AS SELECT * FROM kept"],
            "audit.links is no plain table",
        ),
        (
            ["CREATE RULE nothing AS ON INSERT TO checkpoints DO INSTEAD NOTHING"],
            "audit.checkpoints has rules",
        ),
        (["CREATE TABLE more () INHERITS (entries)"], "audit.entries has inheritance"),
        (
            [
                "CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
                "CREATE TRIGGER kept_out BEFORE INSERT ON entries EXECUTE FUNCTION keep_out()",
            ],
            "audit.entries has triggers",
        ),
    ],
)
async def test_a_table_that_may_show_others_other_rows_is_a_fault(
    trail: Audited, statements: list[str], fault: str
) -> None:
    await as_superuser(trail, *statements)
    (found,) = (await trail.judge()).faults
    assert found == f"{fault}: others may be shown other rows"


async def test_operators_of_somebody_else_are_not_asked(trail: Audited) -> None:
    name = trail.url.rpartition("/")[2].partition("?")[0]
    await as_superuser(
        trail,
        "CREATE FUNCTION never(bigint, bigint) RETURNS bool LANGUAGE sql AS 'SELECT false'",
        "CREATE OPERATOR < (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = never)",
        f'ALTER DATABASE "{name}" SET search_path = audit, pg_catalog',
        UNBOUND,
        FORGED.format("'ORDERS', -5"),
    )
    assert (await trail.judge()).faults == ["ORDERS -5: no entry or link can be there"]


async def in_version_1(audited: Audited) -> None:
    """Make every link as it was before version 2."""
    async with superuser(audited) as connection:
        for stream in STREAM_NAMES:
            digest = hashlib.sha256(stream.encode()).digest()
            for row in await connection.fetch(
                "SELECT * FROM entries WHERE stream = $1 ORDER BY stream_seq", stream
            ):
                seq, body = row["stream_seq"], hashlib.sha256(row["body"]).digest()
                named = f"{row['subject']}\0{row['event_id']}\0".encode()
                digest = hashlib.sha256(digest + seq.to_bytes(8, "big") + named + body).digest()
                await connection.execute(
                    "UPDATE links SET hash = $3, version = 1 WHERE stream = $1 AND stream_seq = $2",
                    stream,
                    seq,
                    digest,
                )


@pytest.mark.parametrize(
    "names", ["type = 'PaymentFailed'", "aggregate_id = 'ORD-NOBODY'", "aggregate_id = ''"]
)
async def test_an_old_entry_has_the_names_that_its_body_says(audited: Audited, names: str) -> None:
    await audited.keep(STREAM_NAMES, 3)
    await in_version_1(audited)
    await audited.rounds().go()
    assert (await audited.judge()).ok
    await as_superuser(
        audited, f"UPDATE entries SET {names} WHERE stream = 'PAYMENTS' AND stream_seq = 2"
    )
    (fault,) = (await audited.judge()).faults
    assert fault == "PAYMENTS 2: its type or its aggregate is not what its body says"


@pytest.mark.parametrize("column", ["body", "event_id", "headers", "stored_at"])
async def test_a_value_that_cannot_be_is_found_at_its_place(trail: Audited, column: str) -> None:
    value = "'infinity'" if column == "stored_at" else "NULL"
    await as_superuser(
        trail,
        f"ALTER TABLE entries ALTER {column} DROP NOT NULL",
        f"UPDATE entries SET {column} = {value} WHERE stream = 'ORDERS' AND stream_seq = 2",
    )
    (fault,) = (await trail.judge()).faults
    assert fault == "ORDERS 2: its entry has lost a value"


async def test_the_headers_go_to_nobody_that_the_store_names(trail: Audited) -> None:
    asked: list[str] = []

    async def away(request: web.Request) -> web.Response:
        asked.append(request.path)
        raise web.HTTPFound(f"/elsewhere{request.path}")

    server = web.Application()
    server.router.add_get("/{name:.*}", away)
    runner = web.AppRunner(server)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    with pytest.raises(CannotReadError, match="answers 302"):
        await trail.judge(checkpoints=f"http://127.0.0.1:{port}/audit", headers={"X-Api-Key": "s"})
    await runner.cleanup()
    assert not [each for each in asked if each.startswith("/elsewhere")]
