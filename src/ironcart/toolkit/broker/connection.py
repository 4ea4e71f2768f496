"""One connection to NATS that comes back by itself, and JetStream's API over it.

nats-py closes for good on most server errors: then `closed` is set and the process should end.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import nats
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import (
    ConnectionClosedError,
    ConnectionReconnectingError,
    NoRespondersError,
    OutboundBufferLimitError,
)

from ironcart.toolkit import telemetry
from ironcart.toolkit.outcomes import IroncartError, Refused, Unavailable

CONNECT_TIMEOUT_S = 2
RECONNECT_WAIT_S = 0.5
PING_INTERVAL_S = 10
REQUEST_TIMEOUT_S = 5.0
SEND_BUFFER_BYTES_MAX = 16 * 1024 * 1024
CLOSE_TIMEOUT_S = 2.0

NOT_NOW = (
    TimeoutError,
    NoRespondersError,
    OutboundBufferLimitError,
    ConnectionClosedError,
    ConnectionReconnectingError,
    OSError,
)


class BrokerError(IroncartError):
    """JetStream's own "no": `code` as in HTTP, `err_code` its own number."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(f"{error.get('description', 'refused')} ({error.get('err_code', 0)})")
        self.code: int = error.get("code", 0)
        self.err_code: int = error.get("err_code", 0)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message ready to travel; `message_id` makes a repeat harmless."""

    message_id: str
    subject: str
    body: bytes
    headers: Mapping[str, str]


class Broker:
    """The connection; while it is away requests raise `Unavailable` and nothing is buffered."""

    def __init__(self, client: Client, lost: asyncio.Future[IroncartError]) -> None:
        self.client = client
        self._lost = lost
        self._closing = False

    @classmethod
    async def connect(cls, url: str, name: str) -> "Broker":
        """Connect, waiting for the broker as long as it takes; raises `Refused` on bad credentials.

        Cancel it to give up. `url` may list several servers, separated by commas.
        """
        log = structlog.get_logger()
        lost: asyncio.Future[IroncartError] = asyncio.get_running_loop().create_future()

        async def on_error(error: Exception) -> None:
            # An exception in here would leave the client deaf: only log, and note a refusal.
            log.warning("Broker error", error=str(error) or type(error).__name__)
            if "authorization" in str(error).lower() and not lost.done():
                lost.set_result(Refused("the broker refuses the credentials in IRONCART_NATS_URL"))

        async def on_disconnect() -> None:
            telemetry.broker_connected.set(0)
            log.warning("Broker lost")

        async def on_reconnect() -> None:
            telemetry.broker_connected.set(1)
            log.info("Broker is back")

        async def on_closed() -> None:
            telemetry.broker_connected.set(0)
            if not lost.done():
                lost.set_result(Unavailable("the connection to the broker is closed for good"))

        connecting = asyncio.ensure_future(
            nats.connect(
                servers=url.split(","),
                name=name,
                inbox_prefix=f"_INBOX_{name.partition('/')[0]}".encode(),
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_WAIT_S,
                connect_timeout=CONNECT_TIMEOUT_S,
                ping_interval=PING_INTERVAL_S,
                max_outstanding_pings=2,
                pending_size=SEND_BUFFER_BYTES_MAX,
                error_cb=on_error,
                disconnected_cb=on_disconnect,
                reconnected_cb=on_reconnect,
                closed_cb=on_closed,
            )
        )
        try:
            waiting: set[asyncio.Future[Any]] = {connecting, lost}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                raise lost.result()
            telemetry.broker_connected.set(1)
            return cls(connecting.result(), lost)
        except ValueError as error:
            raise Refused(f"IRONCART_NATS_URL is wrong: {error}") from error
        finally:
            if not connecting.done():
                connecting.cancel()

    @property
    def connected(self) -> bool:
        """Whether a request made now has a chance."""
        return self.client.is_connected

    async def watch(self) -> None:
        """Return never; raises once the connection can't come back, so that the process ends."""
        lost = await asyncio.shield(self._lost)
        if not self._closing:
            raise lost
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Send what is buffered and close."""
        self._closing = True
        with contextlib.suppress(NOT_NOW):
            await asyncio.wait_for(self.client.close(), CLOSE_TIMEOUT_S)

    async def request(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> Msg:
        """Send and await the answer; raises `Unavailable` when none comes: outcome unknown."""
        if not self.connected:
            raise Unavailable("the broker is away")
        try:
            return await self.client.request(
                subject, body, timeout=REQUEST_TIMEOUT_S, headers=dict(headers) if headers else None
            )
        except NOT_NOW as error:
            raise Unavailable(f"broker: {error or type(error).__name__}") from error

    async def api(self, subject: str, request: Any = None) -> dict[str, Any]:
        """Ask JetStream's API; raises `BrokerError` for its "no", `Unavailable` for its silence."""
        body = b"" if request is None else msgspec.json.encode(request)
        reply = await self.request(f"$JS.API.{subject}", body)
        return answer(reply)


def answer(reply: Msg) -> dict[str, Any]:
    """Read an answer of JetStream; raises `BrokerError`, or `Unavailable` when it is "not now"."""
    try:
        found: dict[str, Any] = msgspec.json.decode(reply.data)
    except msgspec.DecodeError as error:
        raise Unavailable("broker: an answer that is no JSON") from error
    if error_found := found.get("error"):
        refusal = BrokerError(error_found)
        if refusal.code in (429, 503):
            raise Unavailable(f"broker: {refusal}") from refusal
        raise refusal
    return found
