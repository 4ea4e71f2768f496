"""The real Postgres, from its wheel: durable, on the loopback address, with a password."""

import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path

from ironcart.embedded.folder import write_file
from ironcart.embedded.placement import Placement, place
from ironcart.embedded.ports import HOST
from ironcart.embedded.process import CHECK_TIMEOUT_S, CannotStart, Child, Server

DATABASE = "ironcart"
ROLE = "ironcart"
PASSWORD_FILE = "postgres.password"  # noqa: S105 - a file's name
PASSWORD_BYTES = 16
CONNECTIONS_MAX = 100

SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": str(CONNECTIONS_MAX),
    "shared_buffers": "128MB",
    "shared_preload_libraries": "pg_stat_statements",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    # Short statements only: compiling one takes longer than running it.
    "jit": "off",
    # Tables are read by their keys: a sample of 3,000 rows says enough, and ANALYZE, which comes
    # by every minute while they grow, costs a tenth.
    "default_statistics_target": "10",
}


class Postgres(Server):
    """One database server for the data folder `folder`, usually with its data below it."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        log: Path | None = None,
        inherit: tuple[int, ...] = (),
    ) -> None:
        self.folder = folder.absolute()
        self.port = port
        self._log = log or self.folder / "postgres.log"
        self._inherit = inherit
        self._placement: Placement | None = None

    @property
    def placement(self) -> Placement:
        """Where it lives and who runs it; decided on first use."""
        if self._placement is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._placement = place(self.folder)
        return self._placement

    @property
    def url(self) -> str:
        """The address of the database `ironcart`, with the password of its owner."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """Return the address of `database` on this server, as its owner."""
        return self._address(ROLE, self._password(), database)

    def url_for(self, role: str, password: str) -> str:
        """Return the address of the database `ironcart` for another role."""
        return self._address(role, password, DATABASE)

    def _address(self, role: str, password: str, database: str) -> str:
        return f"postgresql://{role}:{password}@{HOST}:{self.port}/{database}"

    def child(self) -> Child:
        """Make the database on first use, and say how to run the server."""
        placement = self.placement
        if not (placement.data / "PG_VERSION").exists():
            self._create(placement)
        options = [f"{name}={value}" for name, value in SETTINGS.items()] + [f"port={self.port}"]
        return Child(
            name="postgres",
            argv=(
                str(placement.programs / "postgres"),
                *("-D", str(placement.data)),
                *(word for option in options for word in ("-c", option)),
            ),
            log=self._log,
            ready=self._is_ready,
            account=placement.account,
            stop_signal=signal.SIGINT,
            last_signal=signal.SIGQUIT,
            orphan_signal=signal.SIGQUIT,
            inherit=self._inherit,
        )

    def _is_ready(self) -> bool:
        probe = [str(self.placement.programs / "pg_isready"), "-q", "-h", HOST]
        probe += ["-p", str(self.port), "-U", ROLE, "-d", DATABASE, "-t", "1"]
        try:
            done = subprocess.run(probe, timeout=CHECK_TIMEOUT_S, check=False)  # noqa: S603 - words of ours
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    def _password(self) -> str:
        path = self.folder / PASSWORD_FILE
        if not path.exists():
            write_file(path, secrets.token_hex(PASSWORD_BYTES) + "\n")
        return path.read_text().strip()

    def _create(self, placement: Placement) -> None:
        """Make the cluster beside its place and move it there whole."""
        fresh = placement.data.with_name("data.new")
        password = placement.data.with_name("password.new")
        shutil.rmtree(fresh, ignore_errors=True)
        write_file(password, self._password())
        if placement.account is not None:
            os.chown(password, placement.account.uid, placement.account.gid)
        options = ["--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"]
        options += ["--auth=scram-sha-256", f"--username={ROLE}", f"--pwfile={password}"]
        try:
            _check(placement.run("initdb", *options, f"--pgdata={fresh}"))
        finally:
            password.unlink()
        _check(
            placement.run(
                *("postgres", "--single", "-j", "-D", str(fresh), "postgres"),
                stdin=f"CREATE DATABASE {DATABASE};\n\n",
            )
        )
        fresh.rename(placement.data)


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CannotStart(f"cannot create the database: {last}")
