"""Checkpoints are signed once and exported whole, whoever else signs, and whatever is away."""

import asyncio
import hashlib
import random
import signal
import sys
from pathlib import Path

import pytest
from audit_parts import Audited, audited, conflicts, is_signing, waits, whole

from ironcart.cli.doctor import _signed
from ironcart.services.audit.app import STREAM_NAMES
from ironcart.services.audit.gateway.folder import Folder
from ironcart.services.audit.handlers.chain import lengthen, lose, verify
from ironcart.services.audit.store import Store
from ironcart.toolkit import signing

__all__ = ["audited"]
# Signs and exports again and again; as told, it dies before, in the middle of, or after an export.
DYING = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from audit_parts import Audited
from ironcart.services.audit.gateway import folder

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

real, moment = folder._append, {moment!r}
def append(file, text):
    if moment == "before":
        die()
    elif moment == "in the middle":
        real(file, text[: len(text) // 2])
        die()
    real(file, text)
    die()

folder._append = append
async def main():
    audited = Audited({url!r}, Path({folder!r}))
    await audited.rounds().go()

asyncio.run(main())
"""


async def test_replicas_that_sign_at_once_make_one_chain_in_every_place(
    audited: Audited, tmp_path: Path
) -> None:
    shared = [audited.rounds(), audited.rounds()]
    apart = audited.rounds(target=Folder(tmp_path / "apart"))
    for _ in range(8):
        await audited.keep(STREAM_NAMES, 2)
        await asyncio.gather(*(replica.go() for replica in (*shared, apart)))
    await asyncio.gather(*(replica.go() for replica in (*shared, apart)))
    await whole(audited)
    assert (await audited.judge(checkpoints=str(tmp_path / "apart"))).ok


async def test_one_is_made_when_it_is_due_and_not_before(audited: Audited) -> None:
    now = 100.0
    rounds = audited.rounds(clock=lambda: now, every_s=10.0, every_entries=20)
    await audited.keep(["ORDERS"], 3)
    await rounds.go()
    assert await audited.numbers() == []
    now += 10.0
    await rounds.go()
    assert await audited.numbers() == [1]
    now += 60.0
    await rounds.go()
    assert await audited.numbers() == [1], "nothing has moved"
    await audited.keep(["ORDERS"], 1)
    now += 9.0
    await rounds.go()
    assert await audited.numbers() == [1, 2], "the last one is long ago"
    await audited.keep(["ORDERS", "PAYMENTS"], 10)
    await rounds.go()
    assert await audited.numbers() == [1, 2, 3], "so many at once"
    await audited.keep(["ORDERS"], 1)
    await rounds.go()
    await rounds.go(last=True)
    assert await audited.numbers() == [1, 2, 3, 4], "the last one before the end"


async def test_an_export_that_fails_holds_up_nothing_and_loses_nothing(
    audited: Audited, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    rounds = audited.rounds(clock=lambda: now)
    await audited.keep(STREAM_NAMES, 1)
    await rounds.go()
    moved = audited.export.rename(audited.folder / "moved")
    audited.export.write_text("in the way")
    for _ in range(3):
        await audited.keep(STREAM_NAMES, 1)
        now += 100.0
        await rounds.go()
    assert await audited.numbers() == [1, 2, 3, 4]
    assert waits("export") == 200.0
    assert capsys.readouterr().out.count("Cannot sign or export checkpoints") == 1
    audited.export.unlink()
    moved.rename(audited.export)
    await rounds.go()
    assert waits("export") == 0
    await whole(audited)


async def test_a_place_that_is_new_gets_everything(audited: Audited, tmp_path: Path) -> None:
    await audited.fill(random.Random(1), 5)
    await audited.rounds(target=Folder(tmp_path / "new")).go()
    assert (await audited.judge(checkpoints=str(tmp_path / "new"))).ok


@pytest.mark.parametrize("moment", ["before", "in the middle", "after"])
async def test_a_crash_between_signing_and_exporting_leaves_no_fork_and_no_hole(
    audited: Audited, moment: str
) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    await audited.keep(STREAM_NAMES, 2)
    script = DYING.format(paths=paths, moment=moment, url=audited.url, folder=str(audited.folder))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    assert await process.wait() == -signal.SIGKILL
    assert await audited.numbers() == [1], "signed and committed"
    assert len(audited.lines()) == (moment != "before")
    await audited.keep(STREAM_NAMES, 2)
    await audited.rounds().go()
    report = await audited.judge()
    assert (report.faults, report.unjudged) == ([], [])
    assert report.checkpoints["exported"] == len(await audited.numbers()) == 2


async def test_a_line_that_a_crash_tore_is_told_from_one_that_somebody_spoiled(
    audited: Audited,
) -> None:
    await audited.fill(random.Random(2), 4)
    (file,) = audited.export.glob("*.jsonl")
    lines = audited.lines()
    torn = [*lines[:2], lines[2][:50], *lines[2:]]
    file.write_text("".join(f"{line}\n" for line in torn))
    assert (await audited.judge()).ok
    spoiled = [*lines[:2], lines[2][:50] + "x", *lines[2:]]
    file.write_text("".join(f"{line}\n" for line in spoiled))
    (fault,) = (await audited.judge()).faults
    assert fault.startswith("checkpoint 3 cannot be read")


async def test_a_database_that_went_back_in_time_takes_over_what_was_exported(
    audited: Audited,
) -> None:
    await audited.fill(random.Random(3), 3)
    before = dict(audited.seqs)
    await audited.keep(STREAM_NAMES, 4)
    await audited.rounds().go()
    for table in ("links", "entries"):
        for stream, seq in before.items():
            await audited.database.execute(
                f"DELETE FROM {table} WHERE stream = $1 AND stream_seq > $2", stream, seq
            )
    await audited.database.execute("DELETE FROM checkpoints WHERE number > 2")

    audited.seqs = before
    rounds = audited.rounds()
    await audited.keep(STREAM_NAMES, 2)
    await rounds.go()
    assert await audited.numbers() == [1, 2, 3, 4], "the exported ones, and none beside them"
    await audited.keep(STREAM_NAMES, 2)
    await audited.keep(["ORDERS"], 1)
    await rounds.go()
    assert await audited.numbers() == [1, 2, 3, 4, 5]
    await whole(audited)


async def test_nothing_is_signed_before_the_export_was_asked(audited: Audited) -> None:
    await audited.fill(random.Random(4), 2)
    kept = audited.export.rename(audited.folder / "kept")
    audited.export.write_text("in the way")
    await audited.database.execute("DELETE FROM checkpoints WHERE number > 1")
    rounds = audited.rounds()
    await audited.keep(STREAM_NAMES, 1)
    await rounds.go()
    assert await audited.numbers() == [1]
    audited.export.unlink()
    kept.rename(audited.export)
    await rounds.go()
    assert await audited.numbers() == [1, 2, 3]
    await whole(audited)


async def test_the_checkpoints_of_another_system_are_not_taken_over(
    audited: Audited, tmp_path: Path
) -> None:
    await audited.fill(random.Random(5), 2)
    other = tmp_path / "other"
    other.mkdir()
    lines = [line.replace('"number":2', '"number":3') for line in audited.lines()]
    (other / "2026-11-21.jsonl").write_text("".join(f"{line}\n" for line in lines))
    before = conflicts()
    rounds = audited.rounds(target=Folder(other))
    await audited.keep(STREAM_NAMES, 1)
    await rounds.go()
    await rounds.go()
    assert not is_signing()
    assert conflicts() == before + 1
    assert await audited.numbers() == [1, 2]


async def test_a_key_that_was_replaced_signs_no_more(audited: Audited, tmp_path: Path) -> None:
    old = audited.rounds()
    await audited.keep(STREAM_NAMES, 1)
    await old.go()
    keys = [audited.public_key, signing.generate(tmp_path / "new.key")]
    signer, _ = signing.load(tmp_path / "new.key")
    for replica in (audited.rounds(signer=signer), old, audited.rounds()):
        await audited.keep(STREAM_NAMES, 1)
        await replica.go()
    assert not is_signing()
    assert await audited.numbers() == [1, 2]
    await audited.rounds(signer=signer).go()
    assert is_signing()
    assert (await audited.judge(public_keys=keys)).ok
    (fault,) = (await audited.judge(public_keys=keys[::-1])).faults
    assert fault.startswith("checkpoint 2: signed by key")
    assert "after a newer key" in fault
    assert (await audited.judge(public_keys=keys[:1])).faults


async def test_a_chain_that_is_not_what_was_signed_is_reported_at_once(audited: Audited) -> None:
    rounds, before = audited.rounds(), conflicts()
    await audited.keep(["ORDERS"], 5)
    await rounds.go()
    await audited.database.execute("UPDATE links SET hash = sha256(hash) WHERE stream_seq = 5")
    await audited.keep(["ORDERS"], 1)
    await rounds.go()
    assert conflicts() == before + 1
    assert await audited.numbers() == [1, 2], "what comes is signed all the same"
    (fault,) = (await audited.judge()).faults
    assert fault.startswith("ORDERS 5: its entry or its link is not what it was")


@pytest.mark.parametrize("gone", ["stream_seq >= 3", "stream_seq = 5"])
async def test_while_a_link_that_was_signed_is_gone_nothing_is_signed_and_it_shows(
    audited: Audited, gone: str
) -> None:
    rounds, before = audited.rounds(), conflicts()
    await audited.keep(["ORDERS"], 5)
    await rounds.go()
    await audited.keep(["ORDERS", "PAYMENTS"], 2)
    await audited.database.execute(f"CREATE TABLE kept AS SELECT * FROM links WHERE {gone}")
    await audited.database.execute(f"DELETE FROM links WHERE {gone} AND stream = 'ORDERS'")
    for _ in range(3):
        await rounds.go()
    assert not is_signing()
    assert conflicts() == before + 1
    assert await audited.numbers() == [1]
    finding = await _signed(audited.url)
    assert finding.verdict == "warning"
    assert "checkpoint 1, and no further: ORDERS has lost the link" in finding.text
    await audited.database.execute("INSERT INTO links SELECT * FROM kept WHERE stream = 'ORDERS'")
    await rounds.go()
    assert is_signing()
    assert (await _signed(audited.url)).verdict == "ok"
    await whole(audited)


async def test_a_checkpoint_that_the_key_did_not_sign_is_not_built_on(audited: Audited) -> None:
    rounds, before = audited.rounds(), conflicts()
    await audited.keep(["ORDERS"], 5)
    await rounds.go()
    await audited.database.execute(
        "INSERT INTO checkpoints SELECT 2, key_id, replace(line, '\"number\":1', '\"number\":2')"
        " FROM checkpoints"
    )
    await audited.keep(["ORDERS"], 1)
    await rounds.go()
    await rounds.go()
    assert not is_signing()
    assert conflicts() == before + 1
    assert len(audited.lines()) == 1, "nor is it exported"


async def test_without_a_key_everything_goes_on_and_nothing_is_signed(audited: Audited) -> None:
    rounds = audited.rounds(signer=None)
    await audited.keep(STREAM_NAMES, 2)
    await rounds.go()
    assert not is_signing()
    assert await audited.numbers() == []
    assert waits("sign") >= 0


async def test_a_loss_has_the_same_hash_when_it_is_told_again(audited: Audited) -> None:
    async def missing() -> None:
        async with audited.database.transaction() as connection:
            assert await lose(connection, "ORDERS", 9) == 5
            await lengthen(Store(connection), "ORDERS")

    await audited.keep(["ORDERS"], 3)
    await missing()
    audited.seqs["ORDERS"] = 8
    await audited.keep(["ORDERS"], 2)
    await audited.rounds().go()
    for table in ("links", "entries"):
        await audited.database.execute(f"DELETE FROM {table} WHERE stream_seq > 3")
    await missing()
    audited.seqs["ORDERS"] = 8
    await audited.keep(["ORDERS"], 3)
    await audited.rounds().go()
    await whole(audited)


async def test_a_chain_that_began_in_version_1_goes_on_in_version_2(audited: Audited) -> None:
    await audited.keep(["ORDERS"], 4)
    digest = hashlib.sha256(b"ORDERS").digest()
    for row in await audited.database.fetch("SELECT * FROM entries ORDER BY stream_seq"):
        material = row["subject"].encode() + b"\0" + row["event_id"].encode() + b"\0"
        material += hashlib.sha256(row["body"]).digest()
        digest = hashlib.sha256(digest + row["stream_seq"].to_bytes(8, "big") + material).digest()
        await audited.database.execute(
            "UPDATE links SET hash = $1, version = 1 WHERE stream_seq = $2",
            digest,
            row["stream_seq"],
        )
    await audited.keep(["ORDERS"], 4)
    await audited.rounds().go()
    await whole(audited)
    assert (await verify(Store(audited.database), "ORDERS")).first_bad is None
    await audited.database.execute("UPDATE entries SET headers = '{}' WHERE stream_seq = 7")
    assert (await verify(Store(audited.database), "ORDERS")).first_bad == 7
    await audited.database.execute("UPDATE links SET version = 3 WHERE stream_seq = 5")
    assert (await verify(Store(audited.database), "ORDERS")).first_bad == 5


async def test_the_doctor_says_whether_the_trail_is_signed(audited: Audited) -> None:
    async def said() -> tuple[str, str]:
        finding = await _signed(audited.url)
        return finding.verdict, finding.text

    await audited.keep(["ORDERS"], 2)
    verdict, text = await said()
    assert verdict == "warning"
    assert "is not signed yet" in text
    await audited.database.execute("UPDATE links SET linked_at = linked_at - interval '1 hour'")
    verdict, text = await said()
    assert verdict == "warning"
    assert "can rewrite it: set IRONCART_AUDIT_SIGNING_KEY_FILE" in text
    await audited.rounds().go()
    assert await said() == ("ok", "the audit trail is signed to checkpoint 1")
    await audited.keep(["PAYMENTS"], 1)
    assert (await said())[0] == "ok"
    await audited.database.execute("UPDATE links SET linked_at = linked_at - interval '1 hour'")
    verdict, text = await said()
    assert verdict == "warning"
    assert "has waited for 36" in text
