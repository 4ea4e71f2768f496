"""The embedded database: durable settings, crashes, and the users and folders it runs with."""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ironcart.embedded.placement import MEMORY_FILE, PACKAGE, _package, _runs, forget, place
from ironcart.embedded.ports import free_port
from ironcart.embedded.postgres import SETTINGS, Postgres
from ironcart.embedded.process import Account, CannotStart

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become someone else")
NOBODY = 65534


async def _ask(url: str, statement: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def _user_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


@pytest.fixture
def private_folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder below one that only its owner may enter."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    folder = home / "data"
    folder.mkdir()
    yield folder
    forget(folder)


@pytest.fixture
def private_server(private_folder: Path) -> Iterator[Postgres]:
    """A server for that folder, not yet started."""
    server = Postgres(private_folder, port=free_port())
    yield server
    server.terminate()


async def test_its_settings_are_durable_and_it_listens_on_the_loopback_only(
    postgres: Postgres,
) -> None:
    for name in ("fsync", "synchronous_commit", "full_page_writes", "shared_preload_libraries"):
        assert await _ask(postgres.url, f"SHOW {name}") == SETTINGS[name]
    assert await _ask(postgres.url, "SHOW data_checksums") == "on"
    assert await _ask(postgres.url, "SHOW listen_addresses") == "127.0.0.1"
    assert await _ask(postgres.url, "SHOW unix_socket_directories") == ""
    assert await _ask(postgres.url, "SHOW server_encoding") == "UTF8"


async def test_it_wants_the_password(postgres: Postgres) -> None:
    stranger = f"postgresql://ironcart:guess@127.0.0.1:{postgres.port}/ironcart"

    with pytest.raises(asyncpg.InvalidPasswordError):
        await _ask(stranger, "SELECT 1")

    secret = postgres.folder / "postgres.password"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


async def test_every_test_gets_an_empty_database_of_its_own(database_url: str) -> None:
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"

    assert await _ask(database_url, tables) == 0
    assert await _ask(database_url, "SELECT current_database()") != "ironcart"


async def test_what_was_committed_is_there_after_kills(own_postgres: Postgres) -> None:
    await _ask(own_postgres.url, "CREATE TABLE t (n int)")
    for number in range(3):
        await _ask(own_postgres.url, f"INSERT INTO t VALUES ({number})")

        own_postgres.kill()
        own_postgres.start()

        assert await _ask(own_postgres.url, "SELECT count(*) FROM t") == number + 1


async def test_a_restart_keeps_port_password_and_data(own_postgres: Postgres) -> None:
    before = own_postgres.url, own_postgres.pid
    await _ask(own_postgres.url, "CREATE TABLE t AS SELECT 1 AS n")

    own_postgres.restart()

    assert own_postgres.url == before[0]
    assert own_postgres.pid != before[1]
    assert await _ask(own_postgres.url, "SELECT n FROM t") == 1


async def test_stopping_does_not_wait_for_open_connections(own_postgres: Postgres) -> None:
    connection = await asyncpg.connect(own_postgres.url)

    own_postgres.terminate(timeout_s=8)

    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("SELECT 1")
    connection.terminate()


async def test_a_creation_that_was_cut_short_is_begun_again(private_server: Postgres) -> None:
    data = private_server.placement.data
    half = data.with_name("data.new")
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")

    private_server.start()

    assert await _ask(private_server.url, "SELECT 1") == 1


@as_root
async def test_as_root_below_a_private_folder_the_data_is_kept_elsewhere(
    private_server: Postgres,
) -> None:
    folder = private_server.folder
    modes = [path.stat().st_mode for path in folder.parents]

    private_server.start()
    await _ask(private_server.url, "CREATE TABLE t AS SELECT 7 AS n")

    assert private_server.placement.outside
    assert str(private_server.placement.data).startswith("/var/tmp/ironcart-")
    assert await asyncio.to_thread(_user_of, private_server.pid) == NOBODY
    assert [path.stat().st_mode for path in folder.parents] == modes

    private_server.terminate()
    again = Postgres(folder, port=free_port())
    again.start()

    assert await _ask(again.url, "SELECT n FROM t") == 7
    again.terminate()


@as_root
async def test_as_root_programs_nobody_can_reach_are_copied(
    private_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = _package()
    hidden = private_server.folder.parent / "site-packages"
    for source in (package, package.with_name(f"{PACKAGE}.libs")):
        if source.is_dir():
            shutil.copytree(source, hidden / source.name, symlinks=True)
    monkeypatch.setattr("ironcart.embedded.placement._package", lambda: hidden / PACKAGE)

    private_server.start()

    assert not private_server.placement.programs.is_relative_to(hidden)
    assert await _ask(private_server.url, "SELECT 1") == 1


@as_root
def test_data_of_a_folder_that_was_deleted_is_not_taken_for_its_successors(
    private_folder: Path,
) -> None:
    leftover = place(private_folder).data.parent / "leftover"
    leftover.touch()
    (private_folder / MEMORY_FILE).unlink()

    place(private_folder)

    assert not leftover.exists()


@as_root
def test_data_that_was_kept_elsewhere_and_is_gone_is_said(private_folder: Path) -> None:
    shutil.rmtree(place(private_folder).data.parent)

    with pytest.raises(CannotStart, match="which is gone"):
        place(private_folder)


# Becomes the user only after its imports: that user may not reach this Python.
AS_NOBODY = """
import asyncio, os, sys, sysconfig
from pathlib import Path
import asyncpg, encodings.idna, subprocess, urllib.request
from ironcart.embedded.nats_server import NatsServer
from ironcart.embedded.ports import free_port
from ironcart.embedded.postgres import Postgres
from ironcart.embedded import process

async def ask(url):
    connection = await asyncpg.connect(url)
    print(await connection.fetchval("SELECT 6 * 7"))
    await connection.close()

folder = Path(sys.argv[1])
if os.geteuid() == 0:
    sysconfig.get_path("scripts")
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    sys.executable = sys.argv[2]
for server in (
    NatsServer(folder, port=free_port(), monitor_port=free_port()),
    Postgres(folder, port=free_port()),
):
    server.start()
    if isinstance(server, Postgres):
        asyncio.run(ask(server.url))
    print(os.stat(f"/proc/{server.pid}").st_uid, os.geteuid())
    server.kill(); server.start(); server.restart(); server.terminate()
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_both_servers_start_as_an_ordinary_user() -> None:
    user = NOBODY if os.geteuid() == 0 else os.geteuid()
    account = Account(uid=NOBODY, gid=NOBODY) if user == NOBODY else None
    pythons = [sys.executable, *(f"{folder}/python3" for folder in ("/usr/local/bin", "/usr/bin"))]
    if account is not None:
        pythons = [python for python in pythons if _runs(account, Path(python))]
        if not pythons or not _runs(account, _package() / "pginstall" / "bin" / "initdb"):
            pytest.skip("nobody cannot reach the programs, in this checkout")
    folder = Path(tempfile.mkdtemp(prefix="ironcart-user-", dir="/var/tmp"))
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    try:
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(folder), pythons[0]],
            env=os.environ | {"HOME": str(folder)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    assert done.stdout.split("\n") == [f"{user} {user}", "42", f"{user} {user}", ""], done.stderr


async def test_statements_of_two_databases_do_not_meet(
    database_url: str, postgres_url: str
) -> None:
    await asyncio.gather(
        _ask(database_url, "CREATE TABLE here (n int)"), _ask(postgres_url, "SELECT 1")
    )

    assert await _ask(postgres_url, "SELECT to_regclass('here')") is None
