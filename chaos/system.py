"""The system under attack: `ironcart up` as a process, reached only through what it shows."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chaos.proxy import Link

SERVICES = ("orders", "inventory", "payments", "notifications", "audit")
VAULT_USERS = ("orders", "notifications")
HOST = "127.0.0.1"
PORTS_IN_A_ROW = 7
PORT_FIRST, PORT_LAST = 20_000, 31_999
PORT_ATTEMPTS_MAX = 500
SANDBOX_OFFSET = 6
READY_TIMEOUT_S = 150.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.1
CLI = (sys.executable, "-m", "ironcart.cli")


class CannotStart(Exception):
    """The system did not come up, or something this machine lacks is in the way."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


class System:
    """One `ironcart up` on the data folder `data`, every service reached through links of ours."""

    def __init__(
        self, data: Path, seed: int, *, environ: Mapping[str, str], nodes: int = 1
    ) -> None:
        self.data = data.absolute()
        self.nodes = nodes
        self.port = _ports_in_a_row()
        self._environ = dict(environ)
        self._up: asyncio.subprocess.Process | None = None
        self.links = {
            f"{service}-{peer}": Link(f"{service}-{peer}", target, seed)
            for peer, target in (("broker", self._broker), ("postgres", self._postgres))
            for service in SERVICES
        }
        self.links["payments-gateway"] = Link("payments-gateway", self._sandbox, seed)

    @property
    def pid(self) -> int:
        """The process of `ironcart up` itself."""
        assert self._up is not None
        return self._up.pid

    async def start(self) -> None:
        """Start everything and wait until it is ready; raises `CannotStart`."""
        self.data.mkdir(parents=True, exist_ok=True)
        self.data.chmod(0o755)
        ports = _free_ports(len(self.links), avoid=range(self.port, self.port + PORTS_IN_A_ROW))
        listening = dict(zip(self.links, ports, strict=True))
        for name, link in self.links.items():
            await link.listen(listening[name])
        environ = self._environ | self._through(listening)
        (self.data / "run.json").unlink(missing_ok=True)
        with (self.data / "up.out").open("ab") as out:
            self._up = await asyncio.create_subprocess_exec(
                *(*CLI, "up", "--data", str(self.data), "--port", str(self.port)),
                *(("--nats-nodes", str(self.nodes)) if self.nodes > 1 else ()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environ,
                start_new_session=True,
            )
        await self._until_ready()

    async def _until_ready(self) -> None:
        assert self._up is not None
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not (self.data / "run.json").exists():
                    if self._up.returncode is not None:
                        raise CannotStart(self._last_words())
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise CannotStart(f"not ready in time: {self._last_words()}") from None

    async def stop(self) -> int:
        """Drain and stop everything; returns the exit status of `up`."""
        status = 0
        if self._up is not None and self._up.returncode is None:
            os.kill(self._up.pid, signal.SIGCONT)
            self._up.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._up.wait()
            except TimeoutError:
                self._up.kill()
                await self._up.wait()
            status = self._up.returncode or 0
        for link in self.links.values():
            await link.close()
        return status

    def run(self) -> dict[str, Any]:
        """Read run.json as it is now."""
        found: dict[str, Any] = json.loads((self.data / "run.json").read_bytes())
        return found

    def pid_of(self, part: str) -> int:
        """Return the newest process of a service, `broker`, `postgres` or `sandbox`."""
        run = self.run()
        if part in SERVICES:
            return int(run["services"][part]["pids"][0])
        if part == "broker":
            return int(run["nats"]["pids"][0])
        return int(run[part]["pid"])

    def url_of(self, part: str) -> str:
        """Return the address of a service or of the sandbox, around every link."""
        run = self.run()
        return str(run["services"][part]["url"] if part in SERVICES else run[part]["url"])

    async def ironcart(self, *words: str, timeout_s: float = 300.0) -> Outcome:
        """Run one `ironcart` command against the system."""
        return await run_command((*CLI, *words, "--data", str(self.data)), self._environ, timeout_s)

    def _through(self, ports: Mapping[str, int]) -> dict[str, str]:
        """Return the settings that send every service through its links, as whoever it is."""
        found = {"IRONCART_PAYMENTS_STRIPE_API_BASE": f"http://{HOST}:{ports['payments-gateway']}"}
        for service in SERVICES:
            own = f"IRONCART_{service.upper()}"
            database = f"postgresql://{HOST}:{ports[f'{service}-postgres']}"
            found[f"{own}_DATABASE_URL"] = f"{database}/ironcart"
            if self.nodes == 1:
                found[f"{own}_NATS_URL"] = f"nats://{HOST}:{ports[f'{service}-broker']}"
            if service in VAULT_USERS:
                found[f"{own}_VAULT_DATABASE_URL"] = f"{database}/ironcart"
        return found

    def _broker(self) -> tuple[str, int]:
        ports = self._ports()
        return HOST, ports.get("broker") or ports["broker_1"]

    def _postgres(self) -> tuple[str, int]:
        return HOST, self._ports()["postgres"]

    def _sandbox(self) -> tuple[str, int]:
        return HOST, self.port + SANDBOX_OFFSET

    def _ports(self) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.data / "ports.json").read_bytes())
        return found

    def _last_words(self) -> str:
        lines = (self.data / "up.out").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "ironcart up said nothing"


def discard(data: Path) -> None:
    """Remove a data folder, and what `up` keeps for it where Postgres's user reaches it."""
    with contextlib.suppress(OSError, ValueError):
        home = Path(json.loads((data / "postgres.json").read_bytes()).get("home", ""))
        if home.name.startswith("ironcart-") and not home.is_relative_to(data):
            shutil.rmtree(home, ignore_errors=True)
    shutil.rmtree(data, ignore_errors=True)


async def run_command(argv: Sequence[str], environ: Mapping[str, str], timeout_s: float) -> Outcome:
    """Run a command to its end, or kill it after `timeout_s`: then its code is not 0."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(environ),
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return Outcome(-1, "", f"not done after {timeout_s:g} s")
    return Outcome(process.returncode or 0, out.decode(), err.decode())


def host_and_port(url: str) -> tuple[str, int]:
    """Return where an address leads."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _ports_in_a_row() -> int:
    for _ in range(PORT_ATTEMPTS_MAX):
        first = PORT_FIRST + secrets.randbelow(PORT_LAST - PORT_FIRST - PORTS_IN_A_ROW)
        if all(is_free(port) for port in range(first, first + PORTS_IN_A_ROW)):
            return first
    raise CannotStart("no seven free ports in a row")


def _free_ports(count: int, avoid: range) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        port = PORT_FIRST + secrets.randbelow(PORT_LAST - PORT_FIRST)
        if port not in avoid and port not in found and is_free(port):
            found.append(port)
    return found
