"""uvicorn in this process's loop: our socket, our signals, a drain that finishes every request."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn

from ironcart.toolkit.http.connection import CONNECTIONS_MAX, Connection, Room
from ironcart.toolkit.http.front import Front
from ironcart.toolkit.http.handshake import over_tls
from ironcart.toolkit.outcomes import Refused
from ironcart.toolkit.tls import Tls

CONNECTIONS_WAITING_MAX = 2_048
KEEP_ALIVE_S = 75
REQUESTS_SHARE_OF_DRAIN = 1 / 3
# Files that are no caller's: the database, the broker, the outside, logs, libraries.
FILES_RESERVED = 200
# TLS keeps some 46 KB for each, plain HTTP 9: a roomful has to fit into the memory of a pod.
TLS_CONNECTIONS_MAX = CONNECTIONS_MAX // 2


def listen(host: str, port: int) -> socket.socket:
    """Take the port; raises `Refused` when somebody else has it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise Refused(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return taken


class Server(uvicorn.Server):
    """Serves an app until `finish`, over HTTPS with `tls`; signals belong to the lifecycle."""

    def __init__(
        self, app: Front, taken: socket.socket, drain_s: float, tls: Tls | None = None
    ) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = CONNECTIONS_MAX if tls is None else TLS_CONNECTIONS_MAX
        room = Room(max(1, min(most, files - FILES_RESERVED)))
        protocol: Any = partial(Connection, room=room, front=app)
        if tls is not None:
            # Not by uvicorn, where a connection counts from the end of its handshake only.
            protocol = over_tls(protocol, tls.server)
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=CONNECTIONS_WAITING_MAX,
                timeout_keep_alive=KEEP_ALIVE_S,
                # A caller that never finishes its request must not use up the whole drain.
                timeout_graceful_shutdown=max(1, int(drain_s * REQUESTS_SHARE_OF_DRAIN)),
            )
        )
        self.config.load()
        self._taken = taken
        self._over = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def run_until_finished(self) -> None:
        """Serve; returns when `finish` was called and every request has its answer."""
        try:
            await self.serve(sockets=[self._taken])
        finally:
            self._over.set()

    async def finish(self) -> None:
        """Accept no more, and wait for the requests under way."""
        self.should_exit = True
        await self._over.wait()
