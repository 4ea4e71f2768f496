"""`ironcart audit verify` and `keygen`, as somebody types them."""

import asyncio
from pathlib import Path

import pytest
from audit_parts import Audited, audited
from test_audit_hiding import as_superuser, trail
from test_audit_tampering import rewrite
from typer.testing import CliRunner

from ironcart.cli.audit import app
from ironcart.embedded.certificates import issue
from ironcart.toolkit import signing

__all__ = ["audited", "trail"]


def run(audited: Audited, *more: str) -> tuple[int, str]:
    words = ["verify", "--database-url", audited.url, "--checkpoints", str(audited.export)]
    done = CliRunner().invoke(app, [*words, "--public-key", str(audited.public_key), *more])
    return done.exit_code, done.output


async def test_a_checkpoint_that_somebody_remembers_has_to_be_there_and_the_same(
    trail: Audited,
) -> None:
    code, said = await asyncio.to_thread(run, trail)
    assert code == 0
    (remembered,) = (line.split()[-1] for line in said.splitlines() if "--expect" in line)
    assert remembered.startswith("2:")
    assert (await asyncio.to_thread(run, trail, "--expect", remembered))[0] == 0
    # The signer itself was made to sign another history.
    lines = trail.lines()
    rewrite(trail, lines[:1])
    await as_superuser(trail, "DELETE FROM checkpoints WHERE number > 1")
    code, said = await asyncio.to_thread(run, trail, "--expect", remembered)
    assert code == 1
    assert "CHANGED checkpoint 2, which was expected, is not there: they end at 1" in said
    await trail.rounds().go()
    assert (await asyncio.to_thread(run, trail))[0] == 0
    code, said = await asyncio.to_thread(run, trail, "--expect", remembered)
    assert code == 1
    assert "CHANGED checkpoint 2 is not the one that was expected: it was signed again" in said


@pytest.mark.parametrize("expected", ["7", "7:abc", "0:" + "a" * 64, "1:" + "a" * 64])
async def test_what_is_remembered_is_a_number_and_a_digest_that_are_judged(
    trail: Audited, expected: str
) -> None:
    code, said = await asyncio.to_thread(run, trail, "--expect", expected, "--from-checkpoint", "2")
    assert code == 2
    assert "--expect" in said


async def test_with_tls_a_database_has_to_show_who_it_is(
    trail: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue(trail.folder / "tls", ["auditor"])
    monkeypatch.setenv("IRONCART_TLS_DIR", str(trail.folder / "tls" / "auditor"))
    code, said = await asyncio.to_thread(run, trail)
    assert code == 2
    assert "rejected SSL upgrade" in said
    monkeypatch.setenv("IRONCART_AUDIT_DATABASE_URL", trail.url)
    nowhere = str(trail.folder / "nowhere")
    code, said = await asyncio.to_thread(run, trail, "--database-url", "", "--data", nowhere)
    assert code == 2
    assert "rejected SSL upgrade" in said


def test_the_command_makes_a_key_once(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["keygen", str(tmp_path / "key")])
    assert done.exit_code == 0
    signer, warning = signing.load(tmp_path / "key")
    assert not warning
    public = (tmp_path / "key.pub").read_bytes()
    again = CliRunner().invoke(app, ["keygen", str(tmp_path / "key")])
    assert again.exit_code == 1
    assert "name another file" in again.output
    assert signing.load(tmp_path / "key")[0].key_id == signer.key_id
    assert (tmp_path / "key.pub").read_bytes() == public
