"""What the tests of notifications and audit share: a service on real parts, inside the test."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import aiohttp
from msgspec import Struct

from ironcart.events import STREAMS, SUBJECTS
from ironcart.toolkit.broker import Broker, Outgoing, ensure, publish
from ironcart.toolkit.database import Database
from ironcart.toolkit.envelope import seal
from ironcart.toolkit.history import History, Outbox
from ironcart.toolkit.http import Endpoint, Server, application, listen
from ironcart.toolkit.lifecycle import Service
from ironcart.toolkit.loop import Chassis, Consumer
from ironcart.toolkit.outcomes import Fact
from ironcart.toolkit.telemetry import Tracing

PATIENCE_S = 20.0
STREAM_BYTES_MAX = 64 * 1024**2
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


async def migrate(database_url: str, schema: str) -> None:
    """Make one schema as `provision` does."""
    database = Database(database_url, "public", "test")
    await database.execute(f"CREATE SCHEMA {schema}")
    await database.close()
    toolkit = files("ironcart.toolkit") / "migrations"
    folders = [toolkit / "vault"]
    if schema != "vault":
        own = files(f"ironcart.services.{schema}") / "migrations"
        folders = [toolkit / "history", own]
    url = database_url.replace("postgresql://", "postgres://")
    dbmate = shutil.which("dbmate", path=str(Path(sys.executable).parent))
    assert dbmate is not None
    command = [dbmate, "--url", f"{url}?sslmode=disable&search_path={schema}", "--no-dump-schema"]
    for folder in folders:
        command += ["--migrations-dir", str(folder)]
    await asyncio.to_thread(subprocess.run, [*command, "migrate"], check=True, capture_output=True)


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Wait until a condition holds, and return what it gave."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := await condition()):
        assert time.monotonic() < deadline, f"still waiting for {condition}"
        await asyncio.sleep(0.02)
    return found


def event(owner: str, data: Struct, version: int = 2, message_id: str | None = None) -> Outgoing:
    """An event as its owner would publish it."""
    aggregate_id = data.order_id  # type: ignore[attr-defined]
    key, body = seal(owner, Fact(aggregate_id, version, data), trace_id=TRACE_ID, causation_id=None)
    headers = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-00"}
    return Outgoing(message_id or str(key), SUBJECTS[type(data)], body, headers)


def raw(subject: str, body: bytes, headers: dict[str, str] | None = None) -> Outgoing:
    """Any message at all."""
    return Outgoing(uuid.uuid4().hex, subject, body, headers or {})


@dataclass
class Api:
    """An HTTP API that listens."""

    url: str

    async def get(self, path: str, status: int = 200) -> Any:
        """GET a JSON document."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}{path}") as answer:
            body = await answer.text()
            assert answer.status == status, body
            expected = "application/json" if status < 400 else "application/problem+json"
            assert answer.content_type == expected
            return json.loads(body)


@asynccontextmanager
async def serving(name: str, endpoints: Sequence[Endpoint]) -> AsyncIterator[Api]:
    """Serve endpoints in this loop."""
    taken = listen("127.0.0.1", 0)
    server = Server(application(name, "0", endpoints, Tracing(name, {})), taken, 1.0)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.run_until_finished())
        await until(lambda: _started(server))
        try:
            yield Api(f"http://127.0.0.1:{taken.getsockname()[1]}")
        finally:
            await server.finish()


@dataclass
class Running:
    """A service that runs, with its parts at hand."""

    api: Api
    broker: Broker
    database: Database

    async def publish(self, messages: Sequence[Outgoing]) -> list[int]:
        """Put messages into a stream, one by one."""
        return [(await publish(self.broker, [message]))[0] for message in messages]

    async def last_seq(self, stream: str) -> int:
        """How many messages a stream has had."""
        info = await self.broker.api(f"STREAM.INFO.{stream}")
        return int(info["state"]["last_seq"])


@asynccontextmanager
async def running(
    service: Service, own: Struct, broker_url: str, database_url: str
) -> AsyncIterator[Running]:
    """Run a service in this loop, on a provisioned broker and schema, and drain it afterwards."""
    name = service.name
    broker, database = Broker(broker_url, name), Database(database_url, name, "test")
    await broker.connect()
    await ensure(broker, STREAMS, service.durables, replicas=1, bytes_max=STREAM_BYTES_MAX)
    outbox, tracing = Outbox(broker, database), Tracing(name, {})
    chassis = Chassis(name, broker, database, History(name, service.subjects), outbox, tracing)
    wiring = service.build(chassis, own, asyncio.Event())
    loops = [*(Consumer(chassis, each) for each in wiring.subscriptions), *wiring.loops]
    beside = [outbox.run_fast_path, outbox.run_sweeper, *wiring.background]
    try:
        async with serving(name, wiring.endpoints) as api, asyncio.TaskGroup() as group:
            background = [group.create_task(_run(run)) for run in beside]
            working = [group.create_task(loop.run()) for loop in loops]
            try:
                yield Running(api, broker, database)
            finally:
                for loop in loops:
                    loop.stop()
                await asyncio.wait(working)
                await outbox.flushed()
                for task in background:
                    task.cancel()
    finally:
        for close in wiring.close:
            await close()
        await broker.close()
        await database.close()


async def _started(server: Server) -> bool:
    return server.started


async def _run(run: Callable[[], Awaitable[None]]) -> None:
    await run()
