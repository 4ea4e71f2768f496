"""An export that was away, went back in time or was added to by others is made whole, or said."""

import shutil
from pathlib import Path

import msgspec
import pytest
from audit_parts import Audited, audited, conflicts, is_signing, waits, whole
from test_audit_objects import bucket

from ironcart.services.audit.gateway.folder import Folder
from ironcart.services.audit.gateway.objects import Objects
from ironcart.services.audit.handlers.checkpoints import digest_of, line_of, read
from ironcart.services.audit.handlers.rounds import Rounds
from ironcart.toolkit import signing

__all__ = ["audited"]


async def signed(audited: Audited, rounds: Rounds, checkpoints: int) -> None:
    for _ in range(checkpoints):
        await audited.keep(["ORDERS"], 2)
        await rounds.go()


async def test_a_volume_that_was_away_gets_what_was_signed_meanwhile(audited: Audited) -> None:
    now = 100.0
    rounds = audited.rounds(clock=lambda: now)
    await signed(audited, rounds, 3)
    moved = audited.export.rename(audited.folder / "moved")
    audited.export.mkdir()
    for _ in range(3):
        now += 100.0
        await signed(audited, rounds, 1)
    assert waits("export") == 200.0
    assert not audited.lines(), "a mount point is not filled"
    shutil.rmtree(audited.export)
    await signed(audited, rounds, 1)
    assert not audited.export.exists(), "nor made"
    moved.rename(audited.export)
    await signed(audited, rounds, 1)
    assert waits("export") == 0
    await whole(audited)


async def test_a_start_while_the_volume_is_away_leaves_no_hole_in_it(audited: Audited) -> None:
    await signed(audited, audited.rounds(), 3)
    moved = audited.export.rename(audited.folder / "moved")
    audited.export.mkdir()
    rounds = audited.rounds()
    await signed(audited, rounds, 2)
    shutil.rmtree(audited.export)
    moved.rename(audited.export)
    await signed(audited, rounds, 2)
    assert await audited.numbers() == [1, 2, 3, 4, 5, 6, 7]
    await whole(audited)


async def test_an_export_that_was_restored_gets_what_it_lacks(audited: Audited) -> None:
    rounds = audited.rounds()
    await signed(audited, rounds, 3)
    shutil.copytree(audited.export, audited.folder / "backup")
    await signed(audited, rounds, 3)
    shutil.rmtree(audited.export)
    (audited.folder / "backup").rename(audited.export)
    await signed(audited, rounds, 1)
    await whole(audited)


async def test_an_object_store_that_was_restored_gets_what_it_lacks(
    audited: Audited, tmp_path: Path
) -> None:
    headers = tmp_path / "headers"
    headers.write_text("Authorization: Bearer one\n")
    async with bucket() as store:
        rounds = audited.rounds(target=Objects(store.url, headers))
        await signed(audited, rounds, 5)
        for name in sorted(store.objects)[2:]:
            del store.objects[name]
        await signed(audited, rounds, 1)
        assert len(store.objects) == 6
        store.objects.clear()
        await signed(audited, rounds, 1)
        assert not store.objects, "an empty one is away"
        restarted = audited.rounds(target=Objects(store.url, headers))
        await restarted.go()
        assert len(store.objects) == 7
        await rounds.close()
        await restarted.close()


@pytest.mark.parametrize("left", ["[" * 60_000, "[" * 100_000, '{"number":-5}'])
async def test_a_line_that_says_nothing_holds_up_no_export(audited: Audited, left: str) -> None:
    rounds = audited.rounds()
    await signed(audited, rounds, 2)
    (file,) = audited.export.glob("*.jsonl")
    with file.open("a") as added_to:
        added_to.write(f"{left}\n")
    await signed(audited, rounds, 2)
    found = [checkpoint.number for line in audited.lines() if (checkpoint := read(line))]
    assert found == [1, 2, 3, 4]


async def test_a_file_of_headers_that_is_not_text_is_waited_out(
    audited: Audited, tmp_path: Path
) -> None:
    headers = tmp_path / "headers"
    headers.write_bytes(b"Authorization: Bearer \xff\xfe")
    async with bucket() as store:
        rounds = audited.rounds(target=Objects(store.url, headers))
        await signed(audited, rounds, 1)
        assert not store.objects
        headers.write_text("Authorization: Bearer one\n")
        await signed(audited, rounds, 1)
        assert len(store.objects) == 1
        await rounds.close()


@pytest.mark.parametrize("file_name", ["", "9999-12-31.jsonl"])
async def test_a_number_that_nobody_signed_is_said_and_not_taken_for_an_export(
    audited: Audited, file_name: str
) -> None:
    now, before = 100.0, conflicts()
    rounds = audited.rounds(clock=lambda: now)
    await signed(audited, rounds, 2)
    (file,) = audited.export.glob("*.jsonl")
    number = 2 if file_name else 1_000_000
    spoiled = file.with_name(file_name or file.name)
    kept = file.read_text()
    with spoiled.open("a") as added_to:
        added_to.write(f'{{"number":{number}}}\n')
    for _ in range(3):
        now += 100.0
        await signed(audited, rounds, 1)
    assert waits("export") >= 200.0
    assert conflicts() == before + 1
    assert "".join(f"{line}\n" for line in audited.lines()).startswith(kept)
    if file_name:
        spoiled.unlink()
    else:
        file.write_text(kept)
    await signed(audited, rounds, 1)
    assert waits("export") == 0
    await whole(audited)


async def test_a_line_of_a_key_that_is_not_ours_is_not_taken_over(audited: Audited) -> None:
    await signed(audited, audited.rounds(), 3)
    (file,) = audited.export.glob("*.jsonl")
    kept = file.read_text()
    last = read(audited.lines()[-1])
    assert last is not None
    alien = msgspec.structs.replace(
        last, number=4, previous=digest_of(last), key="0" * 16, signature="AAAA"
    )
    file.write_text(f"{kept}{line_of(alien)}\n")
    before = conflicts()
    rounds = audited.rounds()
    await signed(audited, rounds, 2)
    assert await audited.numbers() == [1, 2, 3]
    assert not is_signing()
    assert conflicts() == before + 1
    file.write_text(kept)
    await signed(audited, rounds, 1)
    assert is_signing()
    await whole(audited)


async def test_lines_of_an_older_key_are_taken_over_under_a_later_one_of_ours(
    audited: Audited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await signed(audited, audited.rounds(), 3)
    keys = [audited.public_key, signing.generate(tmp_path / "new.key")]
    signer, _ = signing.load(tmp_path / "new.key")
    await signed(audited, audited.rounds(signer=signer), 2)
    await audited.database.execute("DELETE FROM checkpoints WHERE number > 1")
    # In parts, of which the first has none of ours.
    monkeypatch.setattr("ironcart.services.audit.gateway.folder.READ_MAX", 2)
    await audited.rounds(signer=signer, target=Folder(audited.export)).go()
    assert await audited.numbers() == [1, 2, 3, 4, 5]
    assert (await audited.judge(public_keys=keys)).ok
