"""HTTP/1.1 on one asyncio.Protocol: a request is parsed, decided and answered without a task.
A framework costs more than all the rest of the sandbox, which shares its cores with the system.
"""

import asyncio
import socket
import struct
from collections import deque
from http import HTTPStatus
from itertools import count
from typing import cast
from urllib.parse import unquote

import httptools

from ironcart.embedded.sandbox.front import Front, Reply
from ironcart.embedded.sandbox.wire import Answer, Request

BACKLOG = 2048
MAX_BODY_BYTES = 1024 * 1024
LINGER_ZERO = struct.pack("ii", 1, 0)

_AUTHORIZATION, _KEY = b"authorization", b"idempotency-key"
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
_request_no = count(1)


class Connection(asyncio.Protocol):
    """One client connection. Requests are answered in order; a late answer holds up the next."""

    def __init__(self, front: Front, connections: "set[Connection]") -> None:
        self._front = front
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._held: Request | None = None
        self._late: asyncio.TimerHandle | None = None
        self._url = b""
        self._body = b""
        self._authorization = ""
        self._key: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        """The client has left; a late answer goes nowhere, yet at its time."""
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; it calls the on_ methods."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            # A defect or a full disk: nothing was done, nobody is answered, and the loop logs it.
            self._transport.abort()
            raise
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.abort()

    def on_message_begin(self) -> None:
        """A new request."""
        self._url = self._body = b""
        self._authorization, self._key = "", None

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header field; two of them matter."""
        # By their lengths first: there are a dozen of them, of no interest.
        if len(name) == len(_AUTHORIZATION) and name.lower() == _AUTHORIZATION:
            self._authorization = value.decode("latin-1")
        elif len(name) == len(_KEY) and name.lower() == _KEY:
            self._key = value.decode("latin-1") or None

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body += body
        if len(self._body) > MAX_BODY_BYTES:
            self._transport.abort()

    def on_message_complete(self) -> None:
        """The request is whole: decide on it, unless an earlier one is still to be answered."""
        raw_path, _, query = self._url.partition(b"?")
        path = raw_path.decode("latin-1")
        request = Request(
            method=self._parser.get_method().decode("ascii"),
            path=unquote(path) if "%" in path else path,
            query=query,
            body=self._body,
            authorization=self._authorization,
            key=self._key,
        )
        keep_alive = self._parser.should_keep_alive()
        if self._held is None:
            self._decide(request, keep_alive)
        else:
            self._waiting.append((request, keep_alive))

    def stop(self) -> None:
        """Close; whatever a fault still holds is dropped."""
        if self._held is None:
            self._transport.close()
            return
        if self._late is not None:
            self._late.cancel()
            self._front.sent(self._held)
        self._transport.abort()

    def _decide(self, request: Request, keep_alive: bool) -> None:
        if self._transport.is_closing():
            return
        reply = self._front.reply(request)
        if reply.how == "answer":
            if reply.delay_s:
                self._answer_late(request, reply, keep_alive)
            else:
                self._answer(request, reply.answer, keep_alive)
        elif reply.how == "never":
            self._held = request
        else:
            if reply.how == "reset":
                # Lingering for zero seconds makes the close a reset.
                sock = self._transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
            self._transport.abort()

    def _answer_late(self, request: Request, reply: Reply, keep_alive: bool) -> None:
        def answer_now() -> None:
            self._front.sent(request)
            self._held = self._late = None
            self._answer(request, reply.answer, keep_alive)
            while self._waiting and self._held is None:
                self._decide(*self._waiting.popleft())

        self._held = request
        loop = asyncio.get_running_loop()
        self._late = loop.call_later(reply.delay_s, answer_now)

    def _answer(self, request: Request, answer: Answer, keep_alive: bool) -> None:
        if self._transport.is_closing():
            return
        head = (
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"request-id: req_%016x\r\n%s%s\r\n"
        ) % (
            answer.status,
            _PHRASES[answer.status],
            len(answer.body),
            next(_request_no),
            b"idempotent-replayed: true\r\n" if answer.replayed else b"",
            b"" if keep_alive else b"connection: close\r\n",
        )
        self._transport.write(head if request.method == "HEAD" else head + answer.body)
        if not keep_alive:
            self._transport.close()


class HttpServer:
    """Accepts connections on a listening socket until it is stopped."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, sock: socket.socket) -> None:
        """Accept, from now."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._front, self._connections), sock=sock, backlog=BACKLOG
        )

    def stop(self) -> None:
        """Accept no more, and close every connection."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.stop()
