"""One service from its first line to its last."""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import structlog
import uvloop
from litestar import Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from ironcart import __version__
from ironcart.toolkit import settings, telemetry, tls
from ironcart.toolkit.broker import Broker, BrokerError
from ironcart.toolkit.database import STARTED_AT, Database
from ironcart.toolkit.history import History, Outbox
from ironcart.toolkit.http import Endpoint, Server, application, json_response, listen
from ironcart.toolkit.http.routes import Answer, Call
from ironcart.toolkit.lifecycle.renewal import renew
from ironcart.toolkit.lifecycle.service import Loop, Service, Settings
from ironcart.toolkit.lifecycle.start import check_consumers, check_database, check_sync
from ironcart.toolkit.loop import Chassis, Consumer, Releases
from ironcart.toolkit.outcomes import IroncartError, Refused, Unavailable
from ironcart.toolkit.recovery import Recovery
from ironcart.toolkit.unending import Interrupted, unending

READY_CHECK_S = 1.0
LAG_CHECK_S = 2.0
START_RETRY_S = 1.0
EXIT_FORCED = 1
# With the usual 700 a batch of messages is gone through again and again while it is being dealt
# with: a tenth of a service's time. What is left for a while is bounded by it all the same.
YOUNG_OBJECTS_MAX = 20_000


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
        environ = tls.verified(environ, service.name)
        shared, own = settings.load_all((Settings, service.settings), environ, service.name)
        telemetry.configure_logging(service.name, shared.log_level)
        gc.freeze()  # What has been loaded stays.
        gc.set_threshold(YOUNG_OBJECTS_MAX)
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
        self._gate = shared.gate()
        self._tls = tls.find(environ, service.name)
        self._tracing = telemetry.Tracing(service.name, environ)
        who = f"{service.name}/{socket.gethostname()}-{os.getpid()}"
        self._database = Database(shared.database_url, service.name, who, guarded=True)
        # A mark that is lost only causes a republish, so marks need not wait for the disk.
        self._marks = Database(
            shared.database_url,
            service.name,
            f"{who}/outbox",
            connections_max=2,
            session={"synchronous_commit": "off"},
            guarded=True,
        )
        self._unguarded = Database(
            shared.database_url, service.name, f"{who}/recovery", connections_max=3
        )
        self._broker = Broker(shared.nats_url, who, self._tls)
        self._outbox = Outbox(self._broker, self._marks)
        history = History(service.name, service.subjects)
        self._recovery = Recovery(
            history, self._broker, self._unguarded, service.durables, service.memory
        )
        self._chassis = Chassis(
            service.name, self._broker, self._database, history, self._outbox, self._tracing
        )
        self._wiring = service.build(self._chassis, own, self._state.draining)
        subscriptions = self._wiring.subscriptions
        self._consumers = [Consumer(self._chassis, each) for each in subscriptions]
        releases = Releases(self._chassis, subscriptions)
        self._loops: Sequence[Loop] = (*self._consumers, releases, *self._wiring.loops)
        self._running: list[asyncio.Task[None]] = []

    async def run(self) -> int:
        taken = listen(self._settings.host, self._settings.port)
        endpoints = [*self._wiring.endpoints, *self._vital_signs()]
        app = application(self._service.name, __version__, endpoints, self._tracing, self._gate)
        server = Server(app, taken, self._settings.drain_timeout_s, self._tls)
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
                over = self._state.draining.is_set

                def begin(run: Callable[[], Awaitable[None]]) -> "asyncio.Task[None]":
                    return group.create_task(unending(run, over))

                begin(server.run_until_finished)
                begin(self._watch_database)
                if self._gate is not None:
                    begin(self._gate.watch)
                if self._tls is not None:
                    begin(partial(renew, self._tls))
                for run in (self._outbox.run_fast_path, *self._wiring.background):
                    begin(run)
                await self._start()
                begin(self._broker.watch)
                begin(self._outbox.run_sweeper)
                begin(self._measure_lag)
                begin(self._watch_recovery)
                self._running += [begin(loop.run) for loop in self._loops]
                self._state.started = True
                structlog.get_logger().info("Started", port=self._settings.port)
        except BaseExceptionGroup as errors:
            raise _root_cause(errors) from errors

    async def _start(self) -> None:
        """Wait for everything that has to be there once; what is missing shows in `/ready`."""
        for what, step in (
            ("the database", self._check_database),
            ("the broker", self._broker.connect),
            ("a broker that syncs always", partial(check_sync, self._settings)),
            ("a recovery that was cut short", self._finish_recovery),
            ("consumers as provisioned", partial(check_consumers, self._broker, self._service)),
            ("a history as long as the stream", self._check_history),
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
        await check_database(self._unguarded, self._service)
        self._state.database = True

    async def _check_history(self) -> None:
        """Come to know what was published and is not in the database, if it went back in time."""
        started_at = await self._started_at()
        await self._recovery.run()
        await self._recovery.watch()
        self._trust(started_at)

    async def _finish_recovery(self) -> None:
        """One that was cut short may have left consumers missing that it alone makes again."""
        await self._recovery.finish()

    async def _started_at(self) -> datetime:
        async with self._unguarded.acquire() as connection:
            found: datetime = await connection.fetchval(STARTED_AT)
        return found

    def _trust(self, started_at: datetime) -> None:
        self._database.trust(started_at)
        self._marks.trust(started_at)

    async def _watch_database(self) -> None:
        while True:
            await asyncio.sleep(READY_CHECK_S)
            if self._state.started:
                if self._database.restarted or self._marks.restarted:
                    await self._compare_again()
                self._state.database = await self._database.healthy()

    async def _compare_again(self) -> None:
        """A database that has started anew may be an older one: nothing goes on until we know."""
        try:
            started_at = await self._started_at()
            if await self._recovery.unfinished() or await self._recovery.behind():
                raise Refused("the database has gone back in time: starting anew, to recover")
        except (Unavailable, BrokerError) as error:
            structlog.get_logger().warning("Cannot compare the history yet", error=str(error))
            return
        self._trust(started_at)

    async def _watch_recovery(self) -> None:
        recovering = True
        while True:
            if recovering:
                with suppress(Unavailable, BrokerError):
                    recovering = await self._recovery.watch()
            await asyncio.sleep(LAG_CHECK_S)

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
                for loop in self._loops:
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
        await asyncio.wait({work})  # What cancels us meanwhile, the end of the drain, is not its.
        with suppress(asyncio.CancelledError, IroncartError):
            work.result()
        for close in self._wiring.close:
            await close()
        await self._broker.close()
        await self._database.close()
        await self._marks.close()
        await self._unguarded.close()
        self._tracing.close()

    def _vital_signs(self) -> list[Endpoint]:
        async def health(_: Call) -> Answer:
            return json_response({"status": "alive", "service": self._service.name})

        async def ready(_: Call) -> Answer:
            found, checks = self._ready()
            status = "ready" if found else "not ready"
            return json_response({"status": status, "checks": checks}, 200 if found else 503)

        async def metrics(call: Call) -> Answer:
            # As Prometheus's own clients have it: `?name[]=` for each that is wanted, none for all.
            wanted = call.query_params.getall("name[]", [])
            registry = REGISTRY.restricted_registry(wanted) if wanted else REGISTRY
            media_type = CONTENT_TYPE_LATEST.replace("; charset=utf-8", "")
            return Response(generate_latest(registry), media_type=media_type)

        return [
            Endpoint("GET", "/health", health, allows=None),
            Endpoint("GET", "/ready", ready, allows=None),
            Endpoint("GET", "/metrics", metrics, allows=None),
        ]

    def _ready(self) -> tuple[bool, dict[str, str]]:
        state = self._state
        jetstream, forbids = self._broker.connected, self._broker.forbids
        checks = {
            "start": "ok" if state.started else f"waiting for {state.waiting_for}",
            "database": "ok" if state.database else "down",
            "jetstream": ("forbids what we need" if forbids else "ok") if jetstream else "down",
            "drain": "draining" if state.draining.is_set() else "ok",
        }
        # Nothing but a person mends a missing permission, so nobody may overlook it.
        enough = not forbids and (jetstream or self._wiring.accepts_without_broker)
        return (
            state.started and state.database and enough and not state.draining.is_set(),
            checks,
        )


def _root_cause(error: BaseException | None) -> BaseException:
    """What ended the service: the loops that it took with it are not the reason."""
    while isinstance(error, BaseExceptionGroup):
        reasons = error.subgroup(_is_reason) or error
        error = reasons.exceptions[0]
    return error or RuntimeError("the service ended by itself")


def _is_reason(error: BaseException) -> bool:
    return not isinstance(error, Interrupted | BaseExceptionGroup)
