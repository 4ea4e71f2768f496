"""What was signed once cannot be taken back, and signed again otherwise, by who has the tables."""

from pathlib import Path

import pytest
from audit_parts import Audited, audited, conflicts, is_signing, waits, whole

from ironcart.services.audit.app import STREAM_NAMES
from ironcart.services.audit.handlers.chain import genesis, link
from ironcart.services.audit.handlers.checkpoints import read
from ironcart.services.audit.handlers.rounds import Rounds
from ironcart.services.audit.store import Store

__all__ = ["audited"]
TABLES = ("entries", "links", "checkpoints")


async def signed(audited: Audited, rounds: Rounds, checkpoints: int) -> None:
    for _ in range(checkpoints):
        await audited.keep(STREAM_NAMES, 2)
        await rounds.go()


async def rewrite(audited: Audited) -> None:
    """What an owner of the database and of the export does: all after checkpoint 2 is anew."""
    await audited.database.execute("DELETE FROM checkpoints WHERE number > 2")
    await audited.database.execute(
        "UPDATE entries SET body = 'forged' WHERE stream = 'ORDERS' AND stream_seq = 5"
    )
    store = Store(audited.database)
    previous = await store.link("ORDERS", 4) or genesis("ORDERS")
    for sealed in await store.next_entries("ORDERS", 5, 1_000):
        previous = link(previous, sealed)
        await audited.database.execute(
            "UPDATE links SET hash = $1 WHERE stream = 'ORDERS' AND stream_seq = $2",
            previous,
            sealed.stream_seq,
        )
    cut(audited, 2)


def cut(audited: Audited, lines: int) -> str:
    """Shorten the export; returns what it was."""
    (file,) = audited.export.glob("*.jsonl")
    whole_text = file.read_text()
    file.write_text("".join(f"{line}\n" for line in audited.lines()[:lines]))
    return whole_text


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_history_that_was_rewritten_is_not_signed(
    audited: Audited, tmp_path: Path, restarts: bool
) -> None:
    mark_file = tmp_path / "signing.key.last"
    rounds = audited.rounds(mark_file=mark_file)
    await signed(audited, rounds, 6)
    await rewrite(audited)
    if restarts:
        rounds = audited.rounds(mark_file=mark_file)
    before = conflicts()
    await signed(audited, rounds, 3)
    assert await audited.numbers() == [1, 2]
    assert not is_signing()
    assert conflicts() == before + 1
    mark_file.unlink()
    await signed(audited, audited.rounds(mark_file=mark_file), 1)
    assert await audited.numbers() == [1, 2, 3], "its operator has said that it is gone"


async def test_another_checkpoint_of_a_number_that_was_seen_is_not_built_on(
    audited: Audited, tmp_path: Path
) -> None:
    rounds = audited.rounds(mark_file=tmp_path / "mark")
    await signed(audited, rounds, 3)
    await rewrite(audited)
    # Signed by a replica of the same key that has seen nothing.
    await signed(audited, audited.rounds(), 3)
    assert await audited.numbers() == [1, 2, 3, 4, 5]
    before = conflicts()
    await signed(audited, rounds, 2)
    assert await audited.numbers() == [1, 2, 3, 4, 5]
    assert conflicts() == before + 1


async def test_a_checkpoint_that_vanishes_between_looking_and_signing_is_not_replaced(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = audited.rounds()
    await signed(audited, rounds, 3)
    real = Store.lock_checkpoints

    async def late(store: Store) -> None:
        await real(store)
        await audited.database.execute("DELETE FROM checkpoints WHERE number > 2")

    monkeypatch.setattr(Store, "lock_checkpoints", late)
    await signed(audited, rounds, 1)
    assert await audited.numbers() == [1, 2]


async def test_tables_restored_under_a_running_service_take_over_what_was_exported(
    audited: Audited,
) -> None:
    rounds = audited.rounds()
    await signed(audited, rounds, 3)
    await audited.database.execute("CREATE SCHEMA kept")
    for table in TABLES:
        await audited.database.execute(f"CREATE TABLE kept.{table} AS TABLE {table}")
    seqs = dict(audited.seqs)
    await signed(audited, rounds, 3)
    for table in TABLES:
        await audited.database.execute(f"DELETE FROM {table}")
        await audited.database.execute(f"INSERT INTO {table} SELECT * FROM kept.{table}")
    audited.seqs = seqs
    before = conflicts()
    await signed(audited, rounds, 5)
    assert await audited.numbers() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert conflicts() == before
    assert is_signing()
    await whole(audited)


async def test_what_is_restored_later_is_signed_on(audited: Audited, tmp_path: Path) -> None:
    rounds = audited.rounds(mark_file=tmp_path / "mark")
    await signed(audited, rounds, 4)
    await audited.database.execute("DELETE FROM checkpoints WHERE number > 2")
    lines = cut(audited, 2)
    await signed(audited, rounds, 1)
    assert not is_signing()
    (file,) = audited.export.glob("*.jsonl")
    file.write_text(lines)
    await signed(audited, rounds, 1)
    assert is_signing()
    assert await audited.numbers() == [1, 2, 3, 4, 5]
    await whole(audited)


async def test_what_a_crash_kept_from_being_marked_is_followed(
    audited: Audited, tmp_path: Path
) -> None:
    mark_file = tmp_path / "mark"
    await signed(audited, audited.rounds(mark_file=mark_file), 1)
    marked = mark_file.read_bytes()
    await signed(audited, audited.rounds(mark_file=mark_file), 3)
    mark_file.write_bytes(marked)
    await signed(audited, audited.rounds(mark_file=mark_file), 1)
    assert await audited.numbers() == [1, 2, 3, 4, 5]
    assert mark_file.read_bytes() != marked


async def test_where_nothing_can_be_written_the_mark_is_in_memory(
    audited: Audited, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = audited.rounds(mark_file=tmp_path / "nowhere" / "mark")
    await signed(audited, rounds, 3)
    assert capsys.readouterr().out.count("in memory alone") == 1
    await rewrite(audited)
    await signed(audited, rounds, 1)
    assert await audited.numbers() == [1, 2]


async def test_a_chain_that_is_shorter_than_what_was_signed_is_said(audited: Audited) -> None:
    now = 100.0
    rounds = audited.rounds(clock=lambda: now)
    await signed(audited, rounds, 1)
    for stream in STREAM_NAMES:
        await audited.database.execute(
            "INSERT INTO links (stream, stream_seq, hash, version)"
            " VALUES ($1, 1000000000000, sha256('x'), 2)",
            stream,
        )
    await rounds.go()
    last = read((await Store(audited.database).last_line()) or "")
    assert last is not None
    assert last.place("ORDERS") == 1_000_000_000_000
    await audited.database.execute("DELETE FROM links WHERE stream_seq = 1000000000000")
    before = conflicts()
    for _ in range(3):
        now += 100.0
        await signed(audited, rounds, 1)
    assert waits("sign") == 200.0
    assert conflicts() == before + 1
    assert await audited.numbers() == [1, 2]
