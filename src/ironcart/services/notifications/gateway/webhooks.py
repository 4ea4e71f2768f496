"""Webhooks: signed deliveries to addresses of strangers, who must not hold up one another.

Each endpoint has a line of its own: a few calls at a time, a few that wait, and a breaker. What
finds the line full is told when its turn will come, and gives its caller back.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import aiohttp
import structlog
from prometheus_client import Histogram
from yarl import URL

from ironcart.services.notifications.gateway.addresses import NotPublic, Resolver, public_socket
from ironcart.services.notifications.gateway.signatures import sign
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.resilience import Breaker, BreakerOpen, BreakerState

# Callers for all endpoints together. An endpoint that hangs holds IN_LINE_MAX of them until its
# calls time out; then its breaker opens, and it holds one for each probe.
CALLERS_MAX: Final = 1_024
CALLS_PER_ENDPOINT_MAX: Final = 16
IN_LINE_MAX: Final = 256
TURN_TIMEOUT_S: Final = 2.0
CALL_TIMEOUT_S: Final = 10.0
# A turn that is given out is never sooner than the next look for due jobs, nor much later.
TURN_S_MIN: Final = 0.5
TURN_S_MAX: Final = 60.0
CALL_S_GUESSED: Final = 0.1
ANSWER_BYTES_MAX: Final = 4_096
IDLE_S_MAX: Final = 15.0
LINES_MAX: Final = 200
GONE: Final = 410

seconds = Histogram(
    "ironcart_webhook_call_seconds",
    "calls to webhook endpoints",
    ["outcome"],
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


class Webhooks:
    """Delivers to endpoints; with `allow_private` also to addresses that are not public."""

    def __init__(self, *, allow_private: bool = False) -> None:
        self._allow_private = allow_private
        self._lines: dict[str, _Line] = {}
        self._open_session: aiohttp.ClientSession | None = None

    async def deliver(
        self, endpoint_id: str, url: str, secret: bytes, webhook_id: str, body: bytes
    ) -> bool:
        """Make one call: True when the endpoint has it, False when it is gone for good.

        Raises `BreakerOpen` when the call was not made, and `Unavailable` when it came to anything
        else, a redirect included. The text of neither has more of the URL than its host.
        """
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "ironcart-webhooks",
            "accept-encoding": "identity",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(secret, webhook_id, timestamp, body),
        }
        line = self._line(endpoint_id)
        async with line.turn():
            started, outcome = time.monotonic(), "unreachable"
            try:
                status = await self._post(url, headers, body)
                outcome = _outcome(status)
            except NotPublic as error:
                outcome = "blocked"
                raise Unavailable(f"endpoint {endpoint_id}: {error}") from error
            finally:
                took_s = time.monotonic() - started
                seconds.labels(outcome).observe(took_s)
                line.note(took_s)
            if outcome == "refused":
                raise Unavailable(f"endpoint {endpoint_id} answers {status}")
        return outcome == "delivered"

    async def close(self) -> None:
        """Close kept connections."""
        if self._open_session is not None:
            await self._open_session.close()

    def _line(self, endpoint_id: str) -> "_Line":
        if (line := self._lines.get(endpoint_id)) is None:
            if len(self._lines) >= LINES_MAX:  # Most of these endpoints were deleted.
                self._lines = {key: each for key, each in self._lines.items() if each.in_line}
            line = self._lines[endpoint_id] = _Line(endpoint_id)
        return line

    async def _post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """Make the call; returns the status, whatever it is. Raises `NotPublic`, `Unavailable`."""
        try:
            async with self._session().post(
                URL(url, encoded=True), data=body, headers=headers, allow_redirects=False
            ) as answer:
                left = ANSWER_BYTES_MAX
                # The status says it all; the rest is read so that the connection can be kept.
                with suppress(aiohttp.ClientError, OSError):
                    while left > 0 and (chunk := await answer.content.read(left)):
                        left -= len(chunk)
                return answer.status
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, NotPublic):
                raise error.os_error from error
            raise Unavailable(str(error)) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable(f"no answer: {type(error).__name__}") from error

    def _session(self) -> aiohttp.ClientSession:
        if self._open_session is None:
            connector = aiohttp.TCPConnector(
                limit=CALLERS_MAX,
                resolver=Resolver(),
                keepalive_timeout=IDLE_S_MAX,
                socket_factory=None if self._allow_private else public_socket,
            )
            self._open_session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._open_session


class _Line:
    """The way to one endpoint."""

    def __init__(self, endpoint_id: str) -> None:
        # Not among the breakers in the metrics: those are about our own side.
        self._breaker = Breaker(f"webhook {endpoint_id}", on_change=_say)
        self._slots = asyncio.Semaphore(CALLS_PER_ENDPOINT_MAX)
        self.in_line = 0
        self._call_s = CALL_S_GUESSED
        self._booked_until = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Make one call inside; raises `BreakerOpen` with the wait when it is not to be made."""
        if (wait_s := self._breaker.wait_s()) > 0:
            raise BreakerOpen(f"breaker {self._breaker.name} is {self._breaker.state}", wait_s)
        if self.in_line >= IN_LINE_MAX:
            raise self._later()
        self.in_line += 1
        try:
            try:
                async with asyncio.timeout(TURN_TIMEOUT_S):
                    await self._slots.acquire()
            except TimeoutError as error:
                raise self._later() from error
            try:
                with self._breaker.guard():
                    yield
            finally:
                self._slots.release()
        finally:
            self.in_line -= 1

    def note(self, took_s: float) -> None:
        """Learn how long a call takes."""
        self._call_s += (took_s - self._call_s) / 5

    def _later(self) -> BreakerOpen:
        """Give out the next turn: one after the other, as fast as the endpoint takes them."""
        now = time.monotonic()
        self._booked_until = max(now, self._booked_until) + self._call_s / CALLS_PER_ENDPOINT_MAX
        wait_s = min(max(self._booked_until - now, TURN_S_MIN), TURN_S_MAX)
        return BreakerOpen(f"{self._breaker.name} has a full line", wait_s)


def _outcome(status: int) -> str:
    if 200 <= status < 300:
        return "delivered"
    return "gone" if status == GONE else "refused"


def _say(name: str, before: BreakerState, after: BreakerState) -> None:
    structlog.get_logger().info("Breaker changed", breaker=name, was=before, state=after)
