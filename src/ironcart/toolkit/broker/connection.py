"""One connection to NATS that comes back by itself, and JetStream's API over it.

nats-py closes for good on most server errors: then `closed` is set and the process should end.
"""

import asyncio
import contextlib
import logging
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from msgspec import Struct
from nats.aio.msg import Msg
from nats.errors import (
    ConnectionClosedError,
    ConnectionReconnectingError,
    Error,
    NoRespondersError,
    OutboundBufferLimitError,
)

from ironcart.toolkit import telemetry
from ironcart.toolkit.broker.wire import WireClient
from ironcart.toolkit.outcomes import IroncartError, Refused, Unavailable
from ironcart.toolkit.permissions import inbox_of
from ironcart.toolkit.tls import Tls

CONNECT_TIMEOUT_S = 2
RECONNECT_WAIT_S = 0.5
PING_INTERVAL_S = 10
REQUEST_TIMEOUT_S = 5.0
SEND_BUFFER_BYTES_MAX = 16 * 1024 * 1024
CLOSE_TIMEOUT_S = 2.0
CATCH_UP_TIMEOUT_S = 2.0
# nats-py goes deaf when a ping is answered that nobody waits for any more. Long before this is over
# its connection is found to be stale, and the answers that it owes are forgotten.
PING_TIMEOUT_S = 600
# Longer than whatever is refused takes to be tried again.
FORBIDDEN_KEPT_S = 120.0
FORBIDDEN_SUBJECTS_KEPT_MAX = 100
NEVER = float("-inf")
PERMISSIONS_ERR = "permissions violation"

NOT_NOW = (
    TimeoutError,
    NoRespondersError,
    OutboundBufferLimitError,
    ConnectionClosedError,
    ConnectionReconnectingError,
    OSError,
)


REMEDY = "give this user what `ironcart permissions` prints"


class BrokerError(IroncartError):
    """JetStream's own "no": `code` as in HTTP, `err_code` its own number."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(f"{error.get('description', 'refused')} ({error.get('err_code', 0)})")
        self.code: int = error.get("code", 0)
        self.err_code: int = error.get("err_code", 0)


class Outgoing(Struct, frozen=True):
    """A message ready to travel; `message_id` makes a repeat harmless."""

    message_id: str
    subject: str
    body: bytes
    headers: Mapping[str, str]


class Broker:
    """The connection; while it is away requests raise `Unavailable` and nothing is buffered.

    It is the user that the address names. With `tls` both ends show a certificate, before anything
    else is said; a broker that speaks plainly is never told the password.
    """

    def __init__(self, url: str, name: str, tls: Tls | None = None) -> None:
        self._url, self._name, self._tls = url, name, tls
        self.client = WireClient()
        self._lost: asyncio.Future[IroncartError] | None = None
        self._closing = False
        self._forbidden: dict[str, float] = {}  # what the broker forbade, and when it was last said
        self._pings: set[asyncio.Future[None]] = set()

    async def connect(self) -> None:
        """Connect, waiting for the broker as long as it takes; raises `Refused` on bad credentials.

        Cancel it to give up. The address may list several servers, separated by commas.
        """
        self._lost = asyncio.get_running_loop().create_future()
        logging.getLogger("asyncio").addFilter(_is_no_matter_of_ssl)
        connecting = asyncio.ensure_future(
            self.client.connect(
                servers=self._url.split(","),
                name=self._name,
                inbox_prefix=inbox_of(self._user()).encode(),
                tls=None if self._tls is None else self._tls.client,
                tls_handshake_first=self._tls is not None,
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type] # it is slept
                connect_timeout=CONNECT_TIMEOUT_S,
                ping_interval=PING_INTERVAL_S,
                max_outstanding_pings=2,
                pending_size=SEND_BUFFER_BYTES_MAX,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnect,
                reconnected_cb=self._on_reconnect,
                closed_cb=self._on_closed,
            )
        )
        try:
            waiting: set[asyncio.Future[Any]] = {connecting, self._lost}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if self._lost.done():
                raise self._lost.result()
            connecting.result()
            telemetry.broker_connected.set(1)
        except (ValueError, Error) as error:  # What they say may quote the password.
            raise Refused(
                "IRONCART_NATS_URL is wrong: use nats://HOST:PORT, several separated by commas"
            ) from error
        finally:
            connecting.cancel()

    def _user(self) -> str:
        try:
            named = urllib.parse.urlsplit(self._url.partition(",")[0]).username
        except ValueError:  # Connecting says so.
            named = None
        return named or self._name.partition("/")[0]

    async def _on_error(self, error: Exception) -> None:
        # An exception in here would leave the client deaf: only log, and note a refusal.
        text = str(error) or type(error).__name__
        if PERMISSIONS_ERR in text:
            self._note_forbidden(text)
            return
        structlog.get_logger().warning("Broker error", error=text)
        if "authorization" in text.lower():
            self._lose(Refused("the broker refuses the credentials in IRONCART_NATS_URL"))

    def _note_forbidden(self, text: str) -> None:
        """Say it once for each subject and while; unready for as long, so that somebody looks."""
        now = time.monotonic()
        telemetry.broker_forbidden.inc()
        known = now - self._forbidden.pop(text, NEVER) < FORBIDDEN_KEPT_S
        self._forbidden[text] = now
        if len(self._forbidden) > FORBIDDEN_SUBJECTS_KEPT_MAX:
            del self._forbidden[next(iter(self._forbidden))]
        if not known:
            structlog.get_logger().error("The broker forbids this", error=text)
        if f"{PERMISSIONS_ERR} for subscription" in text:
            self._lose(Refused(f"the broker lets us hear nothing: {text}; {REMEDY}"))

    @property
    def forbids(self) -> bool:
        """Whether the broker has refused something for want of permission, not long ago."""
        last = next(reversed(self._forbidden.values()), NEVER)
        return time.monotonic() - last < FORBIDDEN_KEPT_S

    async def _on_disconnect(self) -> None:
        telemetry.broker_connected.set(0)
        if not self._closing:
            structlog.get_logger().warning("Broker lost")

    async def _on_reconnect(self) -> None:
        telemetry.broker_connected.set(1)
        structlog.get_logger().info("Broker is back")

    async def _on_closed(self) -> None:
        telemetry.broker_connected.set(0)
        self._lose(Unavailable("the connection to the broker is closed for good"))

    def _lose(self, why: IroncartError) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(why)

    @property
    def connected(self) -> bool:
        """Whether a request made now has a chance."""
        return self.client.is_connected

    async def watch(self) -> None:
        """Return never; raises once the connection can't come back, so that the process ends."""
        assert self._lost is not None, "connect first"
        lost = await asyncio.shield(self._lost)
        if not self._closing:
            raise lost
        await asyncio.Event().wait()

    async def catch_up(self) -> None:
        """Wait until the broker has taken what was sent, and what it sent before that is here.

        Raises `Unavailable` when it does not answer.
        """
        if not self.connected:
            raise Unavailable("the broker is away")
        ping = asyncio.ensure_future(self.client.flush(PING_TIMEOUT_S))
        self._pings.add(ping)
        ping.add_done_callback(self._pings.discard)
        answered, _ = await asyncio.wait({ping}, timeout=CATCH_UP_TIMEOUT_S)
        if not answered:
            raise Unavailable("the broker does not answer")
        try:
            ping.result()
        except NOT_NOW as error:
            raise Unavailable(f"broker: {error or type(error).__name__}") from error

    async def close(self) -> None:
        """Send what is buffered, see to it that the broker takes it, and close."""
        self._closing = True
        # What is only on its way, an ack say, may be lost with the connection.
        with contextlib.suppress(Unavailable):
            await self.catch_up()
        with contextlib.suppress(*NOT_NOW):
            await asyncio.wait_for(self.client.close(), CLOSE_TIMEOUT_S)
        for ping in self._pings:
            ping.cancel()

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


def _is_no_matter_of_ssl(record: logging.LogRecord) -> bool:
    """nats-py's connection answers the end of a stream as if there were no TLS, to no effect."""
    return "eof_received" not in str(record.msg)


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
