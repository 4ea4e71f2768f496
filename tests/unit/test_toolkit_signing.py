"""A signing key is read from a file that nobody else can read, and from nowhere else."""

from pathlib import Path

import pytest
import typer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from ironcart.cli import audit
from ironcart.toolkit import signing
from ironcart.toolkit.outcomes import Refused


@pytest.fixture
def key(tmp_path: Path) -> Path:
    signing.generate(tmp_path / "key")
    return tmp_path / "key"


def test_a_new_key_is_for_its_owner_alone_and_replaces_none(key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        signing.generate(key)


def test_what_a_key_signs_it_knows_again(key: Path) -> None:
    signer, warning = signing.load(key)
    again, _ = signing.load(key)
    assert not warning
    assert signer.key_id == again.key_id
    assert again.signed(b"text", signer.sign(b"text"))
    assert not again.signed(b"other", signer.sign(b"text"))


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o660, 0o666, 0o777])
def test_a_key_that_others_can_read_is_refused(key: Path, mode: int) -> None:
    key.chmod(mode)
    with pytest.raises(Refused, match=f"chmod 600 {key}"):
        signing.load(key)


def test_a_key_that_the_group_can_read_is_warned_of_unless_somebody_else_owns_it(
    key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key.chmod(0o440)
    assert "can be read by its group" in signing.load(key)[1]
    # As a Secret in a pod: it belongs to root, and the pod's group may read it.
    monkeypatch.setattr("os.geteuid", lambda: key.stat().st_uid + 1)
    assert not signing.load(key)[1]


def test_what_is_no_key_is_refused_with_what_to_do(tmp_path: Path) -> None:
    elliptic = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    found = tmp_path / "key"
    for text in (b"", b"no key", elliptic):
        found.write_bytes(text)
        found.chmod(0o600)
        with pytest.raises(Refused, match="ironcart audit keygen"):
            signing.load(found)
    with pytest.raises(Refused, match="cannot be read"):
        signing.load(tmp_path / "nowhere")


def test_what_was_signed_last_is_remembered_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "key.last"
    assert signing.recall(path) is None
    for number in (7, 8):
        mark = signing.Mark(number, f"{number:064x}")
        signing.remember(path, mark)
        assert signing.recall(path) == mark
    assert [file.name for file in tmp_path.iterdir()] == ["key.last"]
    assert path.stat().st_mode & 0o777 == 0o600
    for text in (b"", b"\xff", b'{"number":0,"digest":""}', b"[" * 60_000):
        path.write_bytes(text)
        with pytest.raises(Refused, match="put it back"):
            signing.recall(path)


def test_a_public_key_that_is_left_is_not_written_over(
    key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = key.with_name("key.pub")
    kept = public.read_bytes()
    key.unlink()
    with pytest.raises(typer.Exit):
        audit.keygen(key)
    assert f"{public} exists" in capsys.readouterr().err
    assert public.read_bytes() == kept
    assert not key.exists()
