"""Callers of POST /orders that cost little: they share the two cores with what they measure."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from ironcart.load.basket import Basket

LINE_TIMEOUT_S = 30.0
TICK_S = 0.002
# By the clock: orders beyond this many without an answer are not sent, and counted.
OPEN_CONNECTIONS_MAX = 1_000
# Few, when there is little to say: each has to speak before it is hung up on.
OPEN_CONNECTIONS_MIN = 2


@dataclass(slots=True)
class Sent:
    """What came of one spell of orders: seconds from the moment each was due to its 202."""

    began_at: float = 0.0
    seconds: float = 0.0
    accept_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    not_sent: int = 0

    @property
    def accepted(self) -> int:
        """Orders answered with 202."""
        return self.statuses[202]


def head_of(heard: bytes) -> bytes | None:
    """Return the head of an answer, without its end, once all of the answer has been heard."""
    head, found, body = heard.partition(b"\r\n\r\n")
    if not found:
        return None
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head if len(body) >= length else None


class _Line(asyncio.Protocol):
    """One connection that is never closed: says an order, and reads one answer at a time."""

    def __init__(self, answered: Callable[["_Line", int], None]) -> None:
        self._answered = answered
        self._heard = b""
        self.due = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def say(self, order: bytes, due: float) -> None:
        assert self.transport is not None
        self.due = due
        self.transport.write(order)

    def data_received(self, data: bytes) -> None:
        self._heard += data
        if (head := head_of(self._heard)) is not None:
            self._heard = b""
            self._answered(self, int(head[9:12]))


class Crowd:
    """Callers with many connections, of an orders API at one address or spread over several."""

    def __init__(
        self,
        orders_urls: str | Sequence[str],
        basket: Basket,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        urls = [orders_urls] if isinstance(orders_urls, str) else orders_urls
        self._sites = [(site.hostname or "", site.port or 80) for site in map(urlsplit, urls)]
        self._basket = basket
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._head = b"POST /orders HTTP/1.1\r\nHost: shop\r\n" + more.encode()
        self._sent = Sent()
        # In turn: a connection that says nothing for long is hung up on.
        self._free: deque[_Line] = deque()
        self._lines: list[_Line] = []
        self._again_until = 0.0
        self._quiet = asyncio.Event()

    async def closed_loop(self, connections: int, seconds: float) -> Sent:
        """Each connection sends its next order when it has the answer to the last one."""
        await self._connect(connections)
        sent = self._sent = Sent(began_at=time.time())
        began = time.monotonic()
        self._again_until = began + seconds
        for line in self._take_all():
            line.say(self._next(), time.monotonic())
        await self._answers()
        sent.seconds = time.monotonic() - began
        return sent

    async def open_loop(self, rate: float, seconds: float) -> Sent:
        """Send `rate` orders a second by the clock, whatever comes back."""
        await self._connect(min(OPEN_CONNECTIONS_MAX, max(OPEN_CONNECTIONS_MIN, int(rate))))
        sent = self._sent = Sent(began_at=time.time())
        began, number = time.monotonic(), 0
        self._again_until = 0.0
        while (due := began + number / rate) < began + seconds:
            if (wait_s := due - time.monotonic()) > 0:
                await asyncio.sleep(max(wait_s, TICK_S))
            while (due := began + number / rate) <= time.monotonic():
                number += 1
                if self._free:
                    self._free.popleft().say(self._next(), due)
                else:
                    sent.not_sent += 1
        sent.seconds = time.monotonic() - began
        await self._answers()
        return sent

    def hang_up(self) -> None:
        """Close every connection."""
        for line in self._lines:
            if line.transport is not None:
                line.transport.close()
        self._lines = []
        self._free.clear()

    def _next(self) -> bytes:
        order = self._basket.next()
        return (
            b"%bContent-Type: application/json\r\n"
            b"Idempotency-Key: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (self._head, order.key.encode(), len(order.body), order.body)
        )

    def _take_all(self) -> list[_Line]:
        lines = list(self._free)
        self._free.clear()
        return lines

    async def _connect(self, count: int) -> None:
        self.hang_up()
        loop = asyncio.get_running_loop()
        for number in range(count):
            host, port = self._sites[number % len(self._sites)]
            _, line = await loop.create_connection(lambda: _Line(self._answered), host, port)
            self._lines.append(line)
        self._free.extend(self._lines)

    def _answered(self, line: _Line, status: int) -> None:
        now = time.monotonic()
        self._sent.statuses[status] += 1
        if status == 202:
            self._sent.accept_s.append(now - line.due)
        if now < self._again_until:
            line.say(self._next(), now)
        else:
            self._free.append(line)
            self._quiet.set()

    async def _answers(self) -> None:
        async with asyncio.timeout(max(0.0, self._again_until - time.monotonic()) + LINE_TIMEOUT_S):
            while len(self._free) < len(self._lines):
                self._quiet.clear()
                await self._quiet.wait()
