"""Kept HTTP/1.1 connections for POSTs: a fourth of what a client for every purpose costs a call.

httptools, which reads the requests to our own services, reads the answers.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Mapping
from typing import cast
from urllib.parse import urlsplit

import aiohappyeyeballs
import httptools

# The other side drops idle connections; we leave before that.
IDLE_S_MAX = 15.0
ANSWER_BYTES_MAX = 4 * 1024 * 1024
# So long is an address tried before the next one is, too (RFC 8305): one of them may be dead.
NEXT_ADDRESS_AFTER_S = 0.25
FINAL = 200  # What comes before is about an answer to come.

_PATH = re.compile(r"/[!-~]*")

# Status, body and headers, with names in lower case.
Answer = tuple[int, bytes, Mapping[str, str]]


class Connections:
    """Connections to one site, as many as there are calls at once.

    What goes wrong is an `OSError`, and then nothing is known of what became of the call. No call
    is sent twice: a kept connection that turns out to be dead fails its call, too.
    """

    def __init__(self, base: str) -> None:
        site = urlsplit(base)
        self._host, self._path = site.hostname or "", site.path.rstrip("/")
        self._tls = ssl.create_default_context() if site.scheme == "https" else None
        self._port = site.port or (443 if self._tls else 80)
        self._host_header = f"Host: {site.netloc}\r\n"
        self._idle: list[_Connection] = []

    async def post(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send one POST and read the whole answer; whoever is cancelled drops the connection."""
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if not lines.count("\n") == lines.count("\r") == len(headers):
            raise ValueError("a header must be one line")
        if not _PATH.fullmatch(path):
            raise ValueError("a path must be one word")
        head = (
            f"POST {self._path}{path} HTTP/1.1\r\n{self._host_header}{lines}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        connection = self._kept() or await self._open()
        try:
            answer = await connection.ask(head.encode() + body)
        except BaseException:
            connection.drop()
            raise
        if connection.lasts:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        """Close what is idle; what is at work ends with its call."""
        while self._idle:
            self._idle.pop().close()

    def _kept(self) -> "_Connection | None":
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.lasts and now - connection.idle_since < IDLE_S_MAX:
                return connection
            connection.close()
        return None

    async def _open(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        sock = await aiohappyeyeballs.start_connection(
            found, happy_eyeballs_delay=NEXT_ADDRESS_AFTER_S, interleave=1, loop=loop
        )
        try:
            _, connection = await loop.create_connection(
                _Connection,
                sock=sock,
                ssl=self._tls,
                server_hostname=self._host if self._tls else None,
            )
        except BaseException:
            sock.close()
            raise
        return connection


class _Connection(asyncio.Protocol):
    """One connection: a question, then its answer, then perhaps another question."""

    def __init__(self) -> None:
        self.lasts = True
        self.idle_since = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Answer] | None = None
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    async def ask(self, question: bytes) -> Answer:
        """Send a question and wait for its answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(question)
        return await self._answer

    def close(self) -> None:
        """Say goodbye, with nothing under way."""
        self.lasts = False
        self._transport.close()

    def drop(self) -> None:
        """Drop the connection, with what may be under way."""
        self.lasts = False
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.drop()  # Nobody has asked.
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("the answer is no HTTP")

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(str(error or "the connection was closed"))

    def on_message_begin(self) -> None:
        if self._answer is None or self._answer.done():
            self.lasts = False  # More than was asked for: the next question is not to hear it.
        self._headers, self._body, self._body_bytes = {}, [], 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > ANSWER_BYTES_MAX:
            self._fail(f"the answer is longer than {ANSWER_BYTES_MAX} bytes")

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < FINAL or self._answer is None or self._answer.done():
            return
        self.lasts = self.lasts and self._parser.should_keep_alive()
        self._answer.set_result((status, b"".join(self._body), self._headers))

    def _fail(self, why: str) -> None:
        self.lasts = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(why))
