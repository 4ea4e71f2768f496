"""The data folder and the ports: one user at a time, secrets kept, one clear line when refused."""

import base64
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ironcart.embedded.folder import claim, master_key, write_file
from ironcart.embedded.ports import HTTP_ORDER, KEPT, free_port, http_ports, is_free, kept_ports
from ironcart.embedded.process import CannotStart


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_folder_is_made_and_claimed_by_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"

    lock = claim(folder)

    with pytest.raises(CannotStart, match=rf"another `ironcart up` \(pid {os.getpid()}\) uses"):
        claim(folder)
    os.close(lock)
    os.close(claim(folder))


def test_a_claim_waits_for_what_a_killed_owner_left_running(tmp_path: Path) -> None:
    leave_a_child = (
        "import os, subprocess, sys; from pathlib import Path;"
        "from ironcart.embedded.folder import claim;"
        "lock = claim(Path(sys.argv[1]));"
        "sleeper = subprocess.Popen(['sleep', '1'], pass_fds=[lock]);"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", leave_a_child, str(tmp_path)], check=False)

    os.close(claim(tmp_path))


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(CannotStart, match=r"cannot write to .*: choose another .* with --data$"):
        claim(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_said_in_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(CannotStart, match="Permission denied"):
        claim(tmp_path)


def test_the_master_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    key = master_key(tmp_path, may_create=True)

    assert len(base64.b64decode(key)) == 32
    assert stat.S_IMODE((tmp_path / "master.key").stat().st_mode) == 0o600
    assert master_key(tmp_path, may_create=False) == key


def test_a_master_key_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"master\.key is gone"):
        master_key(tmp_path, may_create=False)

    for damaged in ("", "not base64!", base64.b64encode(b"short").decode()):
        write_file(tmp_path / "master.key", damaged)
        with pytest.raises(CannotStart, match="does not hold 32 bytes"):
            master_key(tmp_path, may_create=True)


def test_another_master_key_than_the_folders_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    key = master_key(tmp_path, may_create=True)
    other = base64.b64encode(b"o" * 32).decode()

    assert master_key(tmp_path, may_create=False, said=key) == key
    with pytest.raises(CannotStart, match=r"IRONCART_MASTER_KEY is not the key in .*unset it"):
        master_key(tmp_path, may_create=False, said=other)


def test_the_seven_ports_are_in_the_order_people_are_told() -> None:
    first = _seven_free()

    ports = http_ports(first)

    assert list(ports) == list(HTTP_ORDER)
    assert list(ports.values()) == list(range(first, first + 7))


def test_a_port_in_use_is_named_with_the_option_that_helps(taken_port: int) -> None:
    with pytest.raises(CannotStart, match=rf"^port {taken_port} \(orders\) is in use .* --port$"):
        http_ports(taken_port)


@pytest.mark.parametrize("first", [-1, 0, 65_530, 70_000])
def test_ports_that_do_not_exist_are_refused(first: int) -> None:
    with pytest.raises(CannotStart, match="out of range: choose one from 1 to 65529"):
        http_ports(first)


def test_kept_ports_stay_the_same(tmp_path: Path) -> None:
    first = kept_ports(tmp_path, avoid=(), names=KEPT)

    assert kept_ports(tmp_path, avoid=(), names=KEPT) == first
    assert len(set(first.values())) == len(KEPT)
    assert all(is_free(port) for port in first.values())


def test_a_kept_port_somebody_took_meanwhile_is_chosen_anew(tmp_path: Path) -> None:
    first = kept_ports(tmp_path, avoid=(), names=KEPT)

    with socket.create_server(("127.0.0.1", first["postgres"])):
        second = kept_ports(tmp_path, avoid=(), names=KEPT)

    assert second["postgres"] != first["postgres"]
    assert {**second, "postgres": 0} == {**first, "postgres": 0}
    assert kept_ports(tmp_path, avoid=(), names=KEPT) == second


def test_damaged_kept_ports_are_said(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text("[]")

    with pytest.raises(CannotStart, match=r"ports\.json is not a JSON object of ports: delete it"):
        kept_ports(tmp_path, avoid=(), names=KEPT)


def _seven_free() -> int:
    while True:
        first = free_port()
        if all(is_free(port) for port in range(first, first + 7)):
            return first
