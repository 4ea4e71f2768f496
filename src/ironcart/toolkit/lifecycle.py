"""The life of one service: start, be ready, drain on SIGTERM, and end with a code that tells.

Losing the broker or the database does not end a process; a refused credential does (exit 1, with a
message). A drain: not ready, stop pulling, finish what is in hand, publish, ack, close (exit 0).
One that takes too long is forced (exit 1).
"""

import asyncio
import os
import signal
import socket
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Annotated, Any, Protocol

import aiohttp
import msgspec
import structlog
import uvloop
from litestar import Response
from msgspec import Meta
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ironcart import __version__
from ironcart.toolkit import settings, telemetry
from ironcart.toolkit.broker import Broker, BrokerError, compare
from ironcart.toolkit.database import Database
from ironcart.toolkit.history import History, Outbox
from ironcart.toolkit.http import Endpoint, Server, application, json_response, listen
from ironcart.toolkit.http.routes import Answer, Call
from ironcart.toolkit.loop import Chassis, Consumer, RawSubscription, Subscription
from ironcart.toolkit.outcomes import IroncartError, Refused, Unavailable
from ironcart.toolkit.topology import Durable

READY_CHECK_S = 1.0
LAG_CHECK_S = 2.0
START_RETRY_S = 1.0
MONITOR_TIMEOUT_S = 2.0
MONITOR_PORT = 8222
EXIT_FORCED = 1
LOOPBACK = ("127.0.0.1", "::1", "localhost")

Port = Annotated[int, Meta(ge=1, le=65535)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service is told by its environment."""

    nats_url: str
    database_url: str
    nats_monitor_url: str = ""
    host: str = "0.0.0.0"  # noqa: S104 - a container listens to its pod
    port: Port = 8080
    auth: Annotated[str, Meta(pattern="^(on|off)$")] = "on"
    log_level: Annotated[str, Meta(pattern="(?i)^(debug|info|warning|error)$")] = "info"
    drain_timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    allow_unsafe_broker: bool = False

    def __post_init__(self) -> None:
        if self.auth != "off":
            raise ValueError(
                "this version has no API keys yet: set IRONCART_AUTH=off and listen on a loopback"
                " address"
            )
        if self.host not in LOOPBACK:
            raise ValueError(
                "IRONCART_AUTH=off is for a loopback address: set IRONCART_HOST=127.0.0.1"
            )


class Loop(Protocol):
    """Something that runs beside the consumers, and finishes what it has begun after `stop`."""

    async def run(self) -> None:
        """Run until stopped."""

    def stop(self) -> None:
        """Begin nothing more."""


@dataclass(slots=True)
class Wiring:
    """What a service is made of, put together by its `app` module.

    `background` runs until everything else has drained, then is cancelled.
    """

    endpoints: Sequence[Endpoint] = ()
    subscriptions: Sequence[Subscription | RawSubscription] = ()
    loops: Sequence[Loop] = ()
    background: Sequence[Callable[[], Awaitable[None]]] = ()
    accepts_without_broker: bool = False
    close: Sequence[Callable[[], Awaitable[None]]] = ()


@dataclass(frozen=True, slots=True)
class Service:
    """The card of a service, as the command line knows it.

    `subjects` maps the types that it emits to where they go.
    """

    name: str
    subjects: Mapping[str, str]
    durables: Sequence[Durable]
    settings: type[msgspec.Struct]
    build: Callable[[Chassis, Any, asyncio.Event], Wiring]


@dataclass(slots=True)
class _State:
    started: bool = False
    waiting_for: str = "starting"
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    database: bool = False


def run(service: Service, environ: Mapping[str, str]) -> int:
    """Run one service until a signal ends it; returns the exit code. Faults are logged, one line
    each."""
    telemetry.configure_logging(service.name, "info")
    try:
        shared, own = settings.load_all((Settings, service.settings), environ, service.name)
        telemetry.configure_logging(service.name, shared.log_level)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Life(service, shared, own, environ).run())
    except Refused as error:
        structlog.get_logger().error("Cannot run", error=str(error))
        return 1


class _Life:
    """One service from its first line to its last."""

    def __init__(
        self, service: Service, shared: Settings, own: Any, environ: Mapping[str, str]
    ) -> None:
        self._service, self._settings = service, shared
        self._state = _State()
        self._tracing = telemetry.Tracing(service.name, environ)
        who = f"{service.name}/{socket.gethostname()}-{os.getpid()}"
        self._database = Database(shared.database_url, service.name, who)
        # A mark that is lost only causes a republish, so marks need not wait for the disk.
        self._marks = Database(
            shared.database_url,
            service.name,
            f"{who}/outbox",
            connections_max=2,
            session={"synchronous_commit": "off"},
        )
        self._broker = Broker(shared.nats_url, who)
        self._outbox = Outbox(self._broker, self._marks)
        self._chassis = Chassis(
            service.name,
            self._broker,
            self._database,
            History(service.name, service.subjects),
            self._outbox,
            self._tracing,
        )
        self._wiring = service.build(self._chassis, own, self._state.draining)
        self._consumers = [Consumer(self._chassis, s) for s in self._wiring.subscriptions]
        self._running: list[asyncio.Task[None]] = []

    async def run(self) -> int:
        taken = listen(self._settings.host, self._settings.port)
        endpoints = [*self._wiring.endpoints, *self._vital_signs()]
        app = application(self._service.name, __version__, endpoints, self._tracing)
        server = Server(app, taken, self._settings.drain_timeout_s)
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked.set)
        work = asyncio.create_task(self._work(server))
        waiting = asyncio.create_task(asked.wait())
        await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            waiting.cancel()
            raise _root_cause(work.exception())
        return await self._drain(server, work)

    async def _work(self, server: Server) -> None:
        """Serve and consume; ends only by cancellation or by something that waiting won't mend."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(server.run_until_finished())
                group.create_task(self._watch_database())
                for run in (self._outbox.run_fast_path, *self._wiring.background):
                    group.create_task(_forever(run))
                await self._start()
                group.create_task(self._broker.watch())
                group.create_task(self._outbox.run_sweeper())
                group.create_task(self._measure_lag())
                for loop in (*self._consumers, *self._wiring.loops):
                    self._running.append(group.create_task(loop.run()))
                self._state.started = True
                structlog.get_logger().info("Started", port=self._settings.port)
        except BaseExceptionGroup as errors:
            raise _root_cause(errors) from errors

    async def _start(self) -> None:
        """Wait for everything that has to be there once; what is missing shows in `/ready`."""
        for what, step in (
            ("the database", self._check_database),
            ("the broker", self._broker.connect),
            ("a broker that syncs always", self._check_sync),
            ("consumers as provisioned", self._check_consumers),
        ):
            self._state.waiting_for = what
            said = ""
            while True:
                try:
                    await step()
                    break
                except (Unavailable, BrokerError) as error:
                    if str(error) != said:
                        said = str(error)
                        structlog.get_logger().warning(f"Waiting for {what}", error=said)
                    await asyncio.sleep(START_RETRY_S)

    async def _check_database(self) -> None:
        await self._database.connect()
        row = await self._database.fetchrow("SELECT to_regclass('schema_migrations') AS there")
        applied: set[str] = set()
        if row is not None and row["there"] is not None:
            rows = await self._database.fetch("SELECT version FROM schema_migrations")
            applied = {row["version"] for row in rows}
        if behind := _shipped_migrations(self._service) - applied:
            first = min(behind)
            raise Unavailable(f"the schema lacks migration {first}: run `ironcart provision`")
        self._state.database = True

    async def _check_sync(self) -> None:
        """Refuse a broker that acknowledges before it syncs: power loss would lose orders."""
        monitor = self._settings.nats_monitor_url
        if not monitor:
            first = self._settings.nats_url.split(",")[0]
            host = urllib.parse.urlsplit(first).hostname
            monitor = f"http://{host}:{MONITOR_PORT}"
        try:
            timeout = aiohttp.ClientTimeout(total=MONITOR_TIMEOUT_S)
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{monitor}/varz") as answer,
            ):
                said = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            if self._settings.allow_unsafe_broker:
                structlog.get_logger().warning("Cannot tell whether the broker syncs always")
                return
            raise Unavailable(f"cannot ask {monitor}/varz: {error}") from error
        if said.get("jetstream", {}).get("config", {}).get("sync_always") is True:
            return
        complaint = "the broker does not sync before it acknowledges: set `sync_interval: always`"
        if not self._settings.allow_unsafe_broker:
            raise Refused(f"{complaint}, or run with --allow-unsafe-broker and lose orders")
        structlog.get_logger().warning("UNSAFE BROKER", error=complaint)

    async def _check_consumers(self) -> None:
        if phrases := await compare(self._broker, self._service.durables):
            raise Unavailable("; ".join(phrases) + ": run `ironcart provision`")

    async def _watch_database(self) -> None:
        while True:
            await asyncio.sleep(READY_CHECK_S)
            if self._state.started:
                self._state.database = await self._database.healthy()

    async def _measure_lag(self) -> None:
        while True:
            for durable in self._service.durables:
                with suppress(Unavailable, BrokerError):
                    name = f"{durable.stream}.{durable.name}"
                    info = await self._broker.api(f"CONSUMER.INFO.{name}")
                    pending, acks = info["num_pending"], info["num_ack_pending"]
                    telemetry.lag.labels(durable.name, durable.stream).set(pending + acks)
                    telemetry.consumer_pending.labels(durable.stream, durable.name).set(pending)
                    telemetry.consumer_ack_pending.labels(durable.stream, durable.name).set(acks)
                    stream = await self._broker.api(f"STREAM.INFO.{durable.stream}")
                    filled = stream["state"]["bytes"] / max(1, stream["config"]["max_bytes"])
                    telemetry.stream_fill.labels(durable.stream).set(filled)
            for consumer in self._consumers:
                consumer.measure_age()
            await asyncio.sleep(LAG_CHECK_S)

    async def _drain(self, server: Server, work: "asyncio.Task[None]") -> int:
        log = structlog.get_logger()
        log.info("Draining")
        self._state.draining.set()
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                for loop in (*self._consumers, *self._wiring.loops):
                    loop.stop()
                # The door closes last: until then whoever asks hears that this one is draining.
                if self._running:
                    await asyncio.wait(self._running)
                await server.finish()
                await self._outbox.flushed()
                await self._close(work)
        except TimeoutError:
            log.warning("Force shutdown", waited_s=self._settings.drain_timeout_s)
            os._exit(EXIT_FORCED)
        log.info("Drain completed")
        return 0

    async def _close(self, work: "asyncio.Task[None]") -> None:
        work.cancel()
        with suppress(asyncio.CancelledError, IroncartError):
            await work
        for close in self._wiring.close:
            await close()
        await self._broker.close()
        await self._database.close()
        await self._marks.close()
        self._tracing.close()

    def _vital_signs(self) -> list[Endpoint]:
        async def health(_: Call) -> Answer:
            return json_response({"status": "alive", "service": self._service.name})

        async def ready(_: Call) -> Answer:
            found, checks = self._ready()
            status = "ready" if found else "not ready"
            return json_response({"status": status, "checks": checks}, 200 if found else 503)

        async def metrics(_: Call) -> Answer:
            return Response(
                generate_latest(), media_type=CONTENT_TYPE_LATEST.replace("; charset=utf-8", "")
            )

        return [
            Endpoint("GET", "/health", health),
            Endpoint("GET", "/ready", ready),
            Endpoint("GET", "/metrics", metrics),
        ]

    def _ready(self) -> tuple[bool, dict[str, str]]:
        state = self._state
        jetstream = self._broker.connected
        checks = {
            "start": "ok" if state.started else f"waiting for {state.waiting_for}",
            "database": "ok" if state.database else "down",
            "jetstream": "ok" if jetstream else "down",
            "drain": "draining" if state.draining.is_set() else "ok",
        }
        enough = jetstream or self._wiring.accepts_without_broker
        return (
            state.started and state.database and enough and not state.draining.is_set(),
            checks,
        )


def _shipped_migrations(service: Service) -> set[str]:
    """The versions of the migrations that this code was written for, its own and the toolkit's."""
    package = service.build.__module__.rpartition(".")[0]
    folders = [files("ironcart.toolkit") / "migrations" / "history"]
    if package:
        folders.append(files(package) / "migrations")
    return {
        file.name.partition("_")[0]
        for folder in folders
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    }


async def _forever(run: Callable[[], Awaitable[None]]) -> None:
    await run()


def _root_cause(error: BaseException | None) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error or RuntimeError("the service ended by itself")
