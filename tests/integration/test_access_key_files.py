"""`ironcart apikey` and the services that read its file: what is revoked there is revoked here."""

import os
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from ironcart.cli.apikey import app, revoke
from ironcart.toolkit.http import Scope
from ironcart.toolkit.http.access.apikeys import (
    BURST_MAX,
    RATE_PER_S_MIN,
    SECRET_BYTES,
    KeyRing,
    new_key,
    read_file,
    written,
)
from ironcart.toolkit.outcomes import Refused

NOBODY = 65_534
MODE = 0o644


class Keys:
    """A file with two keys, and a service that has read it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "keys.json"
        self.key, self.entry = new_key("shop", Scope.STOREFRONT)
        _, self.other = new_key("other", Scope.STOREFRONT)
        self.file.write_text(written([self.entry, self.other]))
        self.file.chmod(MODE)
        self.ring = KeyRing(self.file, 1.0)

    def in_force(self) -> bool:
        self.ring.look()
        return self.ring.find(self.key.encode()) is not None


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def test_a_file_keeps_its_mode_and_its_owner_when_a_key_is_revoked(keys: Keys) -> None:
    owner = NOBODY if os.geteuid() == 0 else os.geteuid()
    os.chown(keys.file, owner, -1)

    revoke(keys.entry.id, keys.file)

    found = keys.file.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (MODE, owner)
    assert not keys.in_force()
    assert list(keys.file.parent.iterdir()) == [keys.file]


def test_a_whole_key_may_be_named_and_is_never_repeated(
    keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    key, _ = new_key("another", Scope.OPERATOR)
    with pytest.raises(Refused) as refused:
        revoke(key, keys.file)
    revoke(keys.key, keys.file)

    assert [each.id for each in read_file(keys.file).keys] == [keys.other.id]
    secrets = [each[-SECRET_BYTES:] for each in (key, keys.key)]
    said = str(refused.value) + capsys.readouterr().err
    assert not [each for each in secrets if each in said]


def test_a_key_revoked_through_a_link_is_revoked_for_who_reads_what_it_leads_to(
    keys: Keys,
) -> None:
    link = keys.file.with_name("link.json")
    link.symlink_to(keys.file.name)

    revoke(keys.entry.id, link)

    assert link.is_symlink()
    assert not keys.in_force()


def test_a_link_that_leads_back_to_itself_is_refused(keys: Keys) -> None:
    link = keys.file.with_name("link.json")
    link.symlink_to(link.name)
    with pytest.raises(Refused, match="make it readable"):
        revoke(keys.entry.id, link)


def test_a_file_that_could_not_be_read_is_read_as_soon_as_it_can_be(keys: Keys) -> None:
    revoked = written([keys.other])
    with capture_logs() as logs:
        # As long, and as old, as what comes in its place: nothing but reading it shows a change.
        keys.file.write_text("x" * len(revoked))
        os.utime(keys.file, ns=(1, 1))
        assert all(keys.in_force() for _ in range(3))
        keys.file.write_text(revoked)
        os.utime(keys.file, ns=(1, 1))
        assert not keys.in_force()
        assert not keys.in_force()
    assert [each["log_level"] for each in logs] == ["error", "info"]


def test_a_file_that_is_gone_again_is_logged_again(keys: Keys) -> None:
    away = keys.file.with_suffix(".away")
    with capture_logs() as logs:
        for _ in range(2):
            keys.file.rename(away)
            assert keys.in_force()
            away.rename(keys.file)
            assert keys.in_force()
    assert [each["log_level"] for each in logs] == ["error", "error"]


@pytest.mark.parametrize("rate", ["1e-308", "0", "nan", "inf"])
def test_a_rate_that_no_service_could_keep_makes_no_key(keys: Keys, rate: str) -> None:
    before = keys.file.read_text()
    asked = ["new", "--name", "a", "--scope", "storefront", "--burst", "10000000"]

    done = CliRunner().invoke(app, [*asked, "--rate", rate, "--file", str(keys.file)])

    assert done.exit_code != 0
    assert keys.file.read_text() == before


def test_numbers_that_cannot_be_kept_are_refused_in_words(keys: Keys) -> None:
    with pytest.raises(Refused, match="out of range"):
        KeyRing(keys.file, 5e-324)


def test_a_key_of_the_lowest_rate_and_the_highest_burst_is_in_force(keys: Keys) -> None:
    key, entry = new_key("a", Scope.STOREFRONT, rate_per_s=RATE_PER_S_MIN, burst=BURST_MAX)
    keys.file.write_text(written([entry]))
    keys.ring.look()
    found = keys.ring.find(key.encode())
    assert found is not None
    assert found.bucket.take(0.0) == 0
    assert found.bucket.headers()
