"""`ironcart up`: everything on this machine, each part its own process, until it is stopped."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ironcart.cli.permissions import users
from ironcart.embedded.cluster import elected
from ironcart.embedded.folder import claim
from ironcart.embedded.ports import SERVICES
from ironcart.embedded.process import CannotStart
from ironcart.embedded.status import StatusLine
from ironcart.embedded.supervisor import Supervisor
from ironcart.embedded.system import LOAD, POSTGRES, SANDBOX, System
from ironcart.toolkit.outcomes import IroncartError
from ironcart.toolkit.settings import environment

SERVERS_TIMEOUT_S = 40.0
SERVICES_TIMEOUT_S = 90.0
# Together, with what insisting takes, less than the 45 s in which `up` promises to be gone.
DRAIN_TIMEOUT_S = 34.0
SERVERS_STOP_TIMEOUT_S = 5.0
STATUS_INTERVAL_S = 1.0


def up(
    *,
    data: Annotated[Path, typer.Option(help="Folder for everything that is kept.")] = Path(
        ".ironcart"
    ),
    port: Annotated[int, typer.Option(help="First of seven ports in a row.")] = 8080,
    nats_nodes: Annotated[
        int | None,
        typer.Option(help="Nodes of the broker: 1, 3 or 5; by default as the folder has, else 1."),
    ] = None,
    load: Annotated[int, typer.Option(min=0, help="Orders to place a second.")] = 0,
    auth: Annotated[
        bool, typer.Option("--auth", help="Ask callers for a key; run.json has one of each scope.")
    ] = False,
    tls: Annotated[
        bool,
        typer.Option("--tls", help="HTTPS, and certificates at the broker; run.json says whose."),
    ] = False,
) -> None:
    """Run the whole system on this machine until Ctrl-C."""
    try:
        lock = claim(data)
        system = System(
            data,
            first_port=port,
            environ=environment(),
            lock=lock,
            nats_nodes=nats_nodes,
            users=users(),
            auth=auth,
            tls=tls,
        )
        fault = asyncio.run(Session(system).run(load))
    except CannotStart as error:
        fault = str(error)
    except PermissionError as error:
        fault = f"{error.filename}: {error.strerror}: choose another folder with --data"
    if fault:
        typer.echo(f"ironcart up: {fault}", err=True)
        raise typer.Exit(1)


class Session:
    """One run of the system, from its first process to its last."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._stop = asyncio.Event()
        self._announced = False

    async def run(self, load_rate: int) -> str:
        """Run until a signal; returns why it could not start, or nothing."""
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(each, self._stop.set)
        async with asyncio.TaskGroup() as group:
            supervisor = Supervisor(group, tell=self._tell, changed=self._changed)
            self._parts = supervisor.parts
            work = group.create_task(self._work(supervisor, load_rate))
            stop = group.create_task(self._stop.wait())
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            fault = work.result() if work.done() else ""
            work.cancel()
            await self._drain(supervisor)
        return fault

    async def _work(self, supervisor: Supervisor, load_rate: int) -> str:
        """Start everything in order, then show how it is; returns what is in the way."""
        from ironcart.cli.provision import provision

        system = self._system
        try:
            self._tell("starting the broker and the database")
            supervisor.start(*(node.child() for node in system.brokers))
            supervisor.start(await asyncio.to_thread(system.postgres.child))
            names = [node.name for node in system.brokers]
            await supervisor.ready((*names, POSTGRES), SERVERS_TIMEOUT_S)
            await elected(system.brokers, SERVERS_TIMEOUT_S)
            await provision(system.environ())
            self._tell("starting the sandbox and the services")
            supervisor.start(system.sandbox(), *system.services())
            await supervisor.ready((SANDBOX, *SERVICES), SERVICES_TIMEOUT_S)
            system.write_run(supervisor.parts)
        except (CannotStart, IroncartError) as error:
            return str(error)
        self._announced = True
        self._tell(f"ready: orders API at {system.url_of('orders')}, data in {system.folder}")
        if load_rate:
            supervisor.start(system.load(load_rate))
        await self._show_status()
        return ""

    async def _show_status(self) -> None:
        urls = {name: self._system.url_of(name) for name in SERVICES}
        database_url = self._system.postgres.url
        async with StatusLine(
            urls=urls, parts=self._parts, database_url=database_url, ca=self._system.ca
        ) as status:
            while True:
                due = time.monotonic() + STATUS_INTERVAL_S
                self._say(await status.read())
                await asyncio.sleep(due - time.monotonic())

    async def _drain(self, supervisor: Supervisor) -> None:
        self._announced = False
        self._system.forget_run()
        self._tell("stopping: what is in hand is finished first")
        await supervisor.stop((LOAD, *SERVICES), DRAIN_TIMEOUT_S)
        names = [node.name for node in self._system.brokers]
        await supervisor.stop((SANDBOX, *names, POSTGRES), SERVERS_STOP_TIMEOUT_S)
        self._tell("stopped")

    def _changed(self) -> None:
        if self._announced:
            try:
                self._system.write_run(self._parts)
            except OSError as error:
                self._tell(f"cannot write run.json ({error.strerror})")

    def _tell(self, line: str) -> None:
        """Say something that is kept, too."""
        log = self._system.log_of("up")
        with contextlib.suppress(OSError):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}  {line}\n")
        self._say(line)

    def _say(self, line: str) -> None:
        try:
            print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)
        except OSError:
            # Whoever read us is gone, as when the output goes to `head`.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._stop.set()
