"""Alpha and beta as processes of their own, on parts that a test can take away."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from heart_parts import Topology, until
from ironcart.embedded.nats_server import NatsServer, binary
from ironcart.embedded.ports import free_port
from ironcart.embedded.process import http_ready

PROGRAM = Path(__file__).with_name("heart_service.py")
START_PATIENCE_S = 40.0
KEPT_ENVIRONMENT = ("PATH", "LANG", "HOME")


def environment(broker: NatsServer, database_url: str, **more: str) -> dict[str, str]:
    """What a process is told; `more` names settings without their prefix."""
    port = free_port()
    told = {
        "NATS_URL": broker.url,
        "NATS_MONITOR_URL": broker.monitor_url,
        "DATABASE_URL": database_url,
        "AUTH": "off",
        "HOST": "127.0.0.1",
        "PORT": str(port),
    } | more
    inherited = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    return inherited | {f"IRONCART_{name}": value for name, value in told.items() if value}


@dataclass
class Running:
    """One process: its HTTP and its log."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path
    http: aiohttp.ClientSession

    def lines(self) -> list[dict[str, Any]]:
        """Everything it has logged; every line is an object."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def said(self, text: str) -> list[dict[str, Any]]:
        """The lines with this message."""
        return [line for line in self.lines() if line["msg"] == text]

    async def until_said(self, text: str) -> dict[str, Any]:
        """Wait for a line with this message, and return the first."""

        async def there() -> Any:
            return self.said(text)

        lines = await until(there, START_PATIENCE_S)
        found: dict[str, Any] = lines[0]
        return found

    async def ready(self) -> tuple[int, dict[str, str]]:
        """What `/ready` says: the status, 0 when nobody answers, and the checks."""
        try:
            async with self.http.get(f"{self.url}/ready") as answer:
                return answer.status, (await answer.json())["checks"]
        except aiohttp.ClientError:
            return 0, {}

    async def until_ready(self, status: int = 200, **checks: str) -> dict[str, str]:
        """Wait until `/ready` answers so."""

        async def so() -> Any:
            assert self.process.poll() is None, self.log.read_text()
            found, said = await self.ready()
            return said if found == status and checks.items() <= said.items() else None

        try:
            found: dict[str, str] = await until(so, START_PATIENCE_S)
        except AssertionError as error:
            raise AssertionError(f"{await self.ready()}\n{self.log.read_text()}") from error
        return found

    async def post(self, **ping: Any) -> int:
        """Have alpha say a Ping; returns the status."""
        async with self.http.post(f"{self.url}/pings", json=ping) as answer:
            return answer.status

    def terminate(self) -> None:
        """Ask it to drain."""
        self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """Wait until it has ended; returns its exit code."""
        return await asyncio.to_thread(self.process.wait, START_PATIENCE_S)


def spawn(
    name: str, topology: Topology, environ: Mapping[str, str], log: Path
) -> "subprocess.Popen[bytes]":
    """Start one of the two; its standard error is its log."""
    with log.open("wb") as out:
        command = [sys.executable, str(PROGRAM), name, topology.tag]
        return subprocess.Popen(command, env=dict(environ), stderr=out, stdout=out)


@asynccontextmanager
async def process(
    name: str, topology: Topology, environ: Mapping[str, str], folder: Path
) -> AsyncIterator[Running]:
    """Run one of the two until the block ends, then kill it if it is still there."""
    log = folder / f"{name}.log"
    child = spawn(name, topology, environ, log)
    url = f"http://127.0.0.1:{environ['IRONCART_PORT']}"
    timeout = aiohttp.ClientTimeout(total=10)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            yield Running(child, url, log, session)
    finally:
        child.kill()
        await asyncio.to_thread(child.wait)


LAX_CONFIG = """\
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitor_port}"
jetstream {{ store_dir: {store} }}
authorization {{ user: heart, password: secret }}
"""


@dataclass(frozen=True)
class LaxBroker:
    """A broker with a password that syncs now and then."""

    port: int
    monitor_url: str

    def url(self, password: str = "secret") -> str:
        """Its address, for somebody with this password."""
        return f"nats://heart:{password}@127.0.0.1:{self.port}"


@contextmanager
def lax_broker(folder: Path) -> Iterator[LaxBroker]:
    """Run a broker as somebody might who has not read our documents."""
    port = free_port()
    monitor_port = free_port(avoid={port})
    config = folder / "lax.conf"
    config.write_text(
        LAX_CONFIG.format(
            port=port, monitor_port=monitor_port, store=json.dumps(str(folder / "lax"))
        )
    )
    child = subprocess.Popen([str(binary()), "-c", str(config), "-l", str(folder / "lax.log")])
    try:
        ready = http_ready(f"http://127.0.0.1:{monitor_port}/healthz")
        asyncio.run(until(lambda: asyncio.to_thread(ready)))
        yield LaxBroker(port, f"http://127.0.0.1:{monitor_port}")
    finally:
        child.kill()
        child.wait()
