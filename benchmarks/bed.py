"""The bed: one `ironcart up` on a folder of its own, and what its processes use."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import aiohttp
import asyncpg
import psutil

from ironcart.embedded.placement import forget
from ironcart.embedded.ports import HTTP_ORDER, free_port, is_free
from ironcart.load.basket import Basket, sku_names

CLI = (sys.executable, "-m", "ironcart.cli")
SERVICES = ("orders", "inventory", "payments", "notifications", "audit")
INSIDE = Path(__file__).parent / "inside"
READY_TIMEOUT_S = 150.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.25
SKUS = 50
ON_HAND = 500_000
BYTES_PER_MB = 1_000_000
FIRST_PORTS_MAX = 100

# Everything that has happened is told, mailed and kept in the audit trail.
_LEFT = """
SELECT (SELECT count(*) FROM orders.orders WHERE phase IN ('open', 'cancelling'))
     + (SELECT count(*) FROM payments.jobs) + (SELECT count(*) FROM notifications.jobs)
"""
# Cheap to ask with millions of rows, since the last wait for it is part of what is measured: the
# last place in a stream that something was published to, against how far its chain has come, which
# has no gaps.
_NOT_AUDITED = "SELECT " + " + ".join(  # noqa: S608 - names of ours
    f"""(SELECT count(*) FROM {service}.batches WHERE first_seq IS NULL)
      + greatest(0, (SELECT max(first_seq + n - 1) FROM {service}.batches)
        - coalesce((SELECT max(stream_seq) FROM audit.links WHERE stream = '{service.upper()}'), 0))
    """  # noqa: S608 - the same
    for service in SERVICES
    if service != "audit"
)


class CannotMeasure(Exception):
    """The system did not come up, or did not come to an end."""


@dataclass(frozen=True, slots=True)
class Use:
    """CPU seconds that each process has used so far."""

    cpu_s: Mapping[str, float]

    def since(self, before: "Use") -> dict[str, float]:
        """Seconds used since then, by process."""
        return {name: used - before.cpu_s[name] for name, used in self.cpu_s.items()}


class Bed:
    """A system under load. Patches are `module:NAME=value`, set in every process before it runs.

    `replicas` of each service run, all but the first beside `up`, as another machine would. With
    `auth` callers need a key.
    """

    def __init__(
        self,
        *,
        patches: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        nats_nodes: int = 1,
        replicas: int = 1,
        auth: bool = False,
    ) -> None:
        self._nats_nodes, self._replicas, self._auth = nats_nodes, replicas, auth
        self._others: list[Replica] = []
        self._open = AsyncExitStack()
        self.folder = Path(tempfile.mkdtemp(prefix="ironcart-bench-", dir="/var/tmp"))
        self._environ = {**os.environ, **(environ or {})}
        if patches:
            path = os.pathsep.join(filter(None, (str(INSIDE), self._environ.get("PYTHONPATH", ""))))
            self._environ |= {"BENCH_PATCHES": ";".join(patches), "PYTHONPATH": path}
        self._up: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            if self._up is not None:
                await self.__aexit__()
            raise
        return self

    async def _start(self) -> None:
        self.folder.chmod(0o755)
        port = _free_row()
        with (self.folder / "up.out").open("wb") as out:
            self._up = await asyncio.create_subprocess_exec(
                *(*CLI, "up", "--data", str(self.folder), "--port", str(port)),
                *("--nats-nodes", str(self._nats_nodes)),
                *(("--auth",) if self._auth else ()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._environ,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not (self.folder / "run.json").exists():
            if self._up.returncode is not None or time.monotonic() > deadline:
                raise CannotMeasure((self.folder / "up.out").read_text()[-500:])
            await asyncio.sleep(POLL_S)
        for service in SERVICES * (self._replicas - 1):
            replica = Replica(service, int(self.run["services"][service]["pids"][0]))
            log = self.folder / "logs" / f"{service}-{replica.port}.log"
            await self._open.enter_async_context(replica.running(log))
            self._others.append(replica)
        await self._fill()

    async def __aexit__(self, *_: object) -> None:
        assert self._up is not None
        await self._open.aclose()
        if self._up.returncode is None:
            self._up.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._up.wait()
            except TimeoutError:
                self._up.kill()
        with contextlib.suppress(OSError):
            forget(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def run(self) -> dict[str, Any]:
        """run.json as it is now."""
        found: dict[str, Any] = json.loads((self.folder / "run.json").read_bytes())
        return found

    def url(self, service: str) -> str:
        """Where a service answers: the first of its replicas."""
        return str(self.run["services"][service]["url"])

    def urls(self, service: str) -> list[str]:
        """Where each replica of a service answers."""
        others = [replica.url for replica in self._others if replica.service == service]
        return [self.url(service), *others]

    def key_header(self, scope: str) -> dict[str, str]:
        """What a caller of this scope sends; nothing where nobody is asked."""
        key = self.run.get("api_keys", {}).get(scope)
        return {"Authorization": f"Bearer {key}"} if key else {}

    def basket(self, name: str) -> Basket:
        """Orders for what the bed has on its shelves."""
        return Basket(f"bench-{name}-{time.time_ns()}", customers=1_000, skus=SKUS, seed=1)

    def pids(self) -> dict[str, list[int]]:
        """The newest processes of every part."""
        run = self.run
        found = {name: [int(run["services"][name]["pids"][0])] for name in SERVICES}
        for replica in self._others:
            found[replica.service].append(replica.pid)
        servers = {"nats-server": run["nats"]["pids"], "postgres": [run["postgres"]["pid"]]}
        return {**found, **servers, "sandbox": [run["sandbox"]["pid"]], "load": [os.getpid()]}

    def use(self) -> Use:
        """CPU of every part, children and replicas included."""
        pids = self.pids().items()
        used = {name: sum(cpu_s(pid) for pid in several) for name, several in pids}
        # They are our own children, and stand with their services.
        for replica in self._others:
            own = psutil.Process(replica.pid).cpu_times()
            used["load"] -= own.user + own.system
        return Use(used)

    def memory_mb(self, parts: Sequence[str] = SERVICES) -> dict[str, float]:
        """Resident megabytes of each of these, the largest where there are several."""
        pids = self.pids()
        return {name: max(_resident_mb(pid) for pid in pids[name]) for name in parts}

    @asynccontextmanager
    async def database(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """A connection that sees every schema."""
        connection = await asyncpg.connect(self.run["postgres"]["url"])
        try:
            yield connection
        finally:
            await connection.close()

    async def done(self, timeout_s: float) -> None:
        """Wait until every order has ended, every mail is sent and every event is audited."""
        deadline = time.monotonic() + timeout_s
        async with self.database() as connection:
            for question in (_LEFT, _NOT_AUDITED):
                while left := await connection.fetchval(question):
                    if time.monotonic() > deadline:
                        raise CannotMeasure(f"{left} left after {timeout_s:g} s")
                    await asyncio.sleep(POLL_S)

    async def metrics(self, service: str) -> str:
        """What a service says of itself; its replicas one after the other."""
        said = []
        async with aiohttp.ClientSession() as session:
            for url in self.urls(service):
                async with session.get(f"{url}/metrics") as answer:
                    said.append(await answer.text())
        return "\n".join(said)

    async def _fill(self) -> None:
        async with aiohttp.ClientSession(headers=self.key_header("operator")) as session:
            for sku in sku_names(SKUS):
                url = f"{self.url('inventory')}/stock/{sku}"
                async with session.put(url, json={"on_hand": ON_HAND}) as answer:
                    if answer.status >= 300:
                        raise CannotMeasure(f"stock of {sku}: {answer.status}")


class Replica:
    """One more process of a service, told what the one with `pid` was told, on a port of its own.

    Reads the environment of that process, so Linux only.
    """

    def __init__(self, service: str, pid: int) -> None:
        self.service, self.port, self.pid = service, free_port(), 0
        told = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        self._environ = dict(line.split("=", 1) for line in told if "=" in line)
        self._environ["IRONCART_PORT"] = str(self.port)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run it until the end of the `with`, which asks it to drain; ready when that begins."""
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *(*CLI, "run", self.service), env=self._environ, stdout=out, stderr=out
            )
        self.pid = process.pid
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not await is_ready(self.url):
                    if process.returncode is not None:
                        raise CannotMeasure(f"another {self.service} ended: {process.returncode}")
                    await asyncio.sleep(POLL_S)
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def is_ready(url: str) -> bool:
    """Whether the service at this address says that it is."""
    with contextlib.suppress(aiohttp.ClientError, OSError):
        async with aiohttp.ClientSession() as session, session.get(f"{url}/ready") as answer:
            return answer.status == HTTPStatus.OK
    return False


def _resident_mb(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss / BYTES_PER_MB)


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of a process and its children, those that ended included."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    used = times.user + times.system + times.children_user + times.children_system
    for child in process.children():
        with contextlib.suppress(psutil.Error):
            own = child.cpu_times()
            used += own.user + own.system
    return float(used)


def _free_row() -> int:
    for _ in range(FIRST_PORTS_MAX):
        first = free_port()
        if all(is_free(first + offset) for offset in range(len(HTTP_ORDER))):
            return first
    raise CannotMeasure("no ports in a row are free")
