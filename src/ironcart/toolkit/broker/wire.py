"""The only place that reaches below what nats-py offers: it costs half as much for each message.

Many commands go out in one write: each `publish` of the client is two coroutines, a dictionary of
headers checked one by one, and a look at the queue of its flusher. What comes for a listener is
handed over at once, not through an object, a queue and a task; what comes whole is not even seen
by the client's parser.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from nats import errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.protocol.parser import AWAITING_CONTROL_LINE, CRLF_SIZE, Parser

# Subject, reply subject, body and headers of one message.
Listener = Callable[[str, str, bytes, Mapping[str, str]], None]
# What stands before the headers of a message: NATS/1.0 and a line break.
_VERSION_BYTES = 10
_STATUS = b"NATS/1.0 "
# Names of headers that are known to be good.
NAMES_KEPT_MAX = 256
# Subject, subscription, reply subject, bytes of headers, bytes of headers and body.
_head_at = re.compile(rb"HMSG (\S+) (\d+) (\S+) (\d+) (\d+)\r\n").match


class WireClient(Client):
    """nats-py's client, and `listen`."""

    def __init__(self) -> None:
        super().__init__()
        self._listeners: dict[int, Listener] = {}
        self._ps = _Parser(self)

    async def listen(self, subject: str, hear: Listener) -> Subscription:
        """Have `hear` called for each message, in order, as soon as it has been read.

        Nobody may know the subject before this returns: what comes earlier is lost. Unsubscribing
        ends it.
        """
        subscription = await self.subscribe(subject)
        self._listeners[subscription._id] = hear  # noqa: SLF001 - see above
        return subscription

    async def hear_whole(self, data: bytes, at: int) -> int:
        """Hand over what stands whole at `at`, as far as it is for listeners; returns its end."""
        while head := _head_at(data, at):
            subject, sid, reply, headers_bytes, all_bytes = head.groups()
            begin = head.end()
            end = begin + int(all_bytes)
            hear = self._listeners.get(int(sid))
            if end + CRLF_SIZE > len(data) or hear is None or int(sid) not in self._subs:
                break
            if _is_status(data, begin):
                break
            body_at = begin + int(headers_bytes)
            headers = read_headers(data[begin:body_at])
            await self._tell(hear, subject, reply, data[body_at:end], headers)
            at = end + CRLF_SIZE
        return at

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        hear = self._listeners.get(sid)
        if hear is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        elif sid not in self._subs:
            del self._listeners[sid]
        else:
            status = headers and _is_status(headers, 0)
            found = await self._process_headers(headers) if status else read_headers(headers)
            await self._tell(hear, subject, reply, data, found or {})

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        """Read headers as nats-py does; what whoever published made of them must end no reading."""
        try:
            return await super()._process_headers(headers)
        except (IndexError, UnicodeDecodeError):
            return None

    async def _tell(
        self, hear: Listener, subject: bytes, reply: bytes, body: bytes, headers: Mapping[str, str]
    ) -> None:
        try:
            # A broker takes any bytes for a subject, and delivers them again until they are acked.
            hear(subject.decode(errors="replace"), reply.decode(), body, headers)
        except Exception as error:  # noqa: BLE001 - or nothing would be read any more
            await self._error_cb(error)


class _Parser(Parser):
    """nats-py's parser, but what stands whole and is for a listener goes past it.

    Of anything else it is given one piece, so that it stands at the start of a message again:
    a control line, or as much of a message as it lacks. Data may be cut anywhere.
    """

    nc: WireClient

    async def parse(self, data: bytes = b"") -> None:
        try:
            await self._parse(data)
        except ValueError as error:  # The client would stop reading, and never connect anew.
            raise errors.ProtocolError("what came is no NATS protocol") from error

    async def _parse(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            end = 0
            if self.state != AWAITING_CONTROL_LINE:
                end = at + self.needed + CRLF_SIZE - len(self.buf)
            elif not self.buf:
                at = await self.nc.hear_whole(data, at)
            end = end or data.find(b"\n", at) + 1 or len(data)
            connection = self.buf
            await super().parse(data[at:end])
            if self.buf is not connection:  # It is given up: what else came over it counts no more.
                return
            at = end


def _is_status(data: bytes, headers_at: int) -> bool:
    """Whether these headers tell a status, which has its own way of being written."""
    return data.startswith(_STATUS, headers_at)


def read_headers(raw: bytes) -> dict[str, str]:
    """Read headers as nats-py does: names that are no tokens are left out."""
    if not raw:
        return {}
    found: dict[str, str] = {}
    for line in raw[_VERSION_BYTES:].decode(errors="replace").split("\r\n"):
        written, colon, value = line.partition(":")
        if colon and (name := _token(written)) is not None:
            found[name] = value.strip()
    return found


@lru_cache(NAMES_KEPT_MAX)
def _token(written: str) -> str | None:
    """The name of a header, unless it is none; nearly all messages have the same few."""
    name = written.strip()
    return name if name.isascii() and name.isprintable() and " " not in name else None


def publication(subject: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """One message with headers as it is sent; neither names nor values may hold a line break."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    head = f"NATS/1.0\r\n{lines}\r\n".encode()
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (
        subject.encode(),
        len(head),
        len(head) + len(body),
        head,
        body,
    )


def answers(replies: Sequence[str], body: bytes) -> bytes:
    """The same short body to many reply subjects."""
    end = b" %d\r\n%b\r\n" % (len(body), body)
    return b"".join([b"PUB %b%b" % (reply.encode(), end) for reply in replies])


async def write(client: Client, commands: bytes) -> None:
    """Hand commands to the client's own buffer, in order with whatever else it sends.

    Raises what its `publish` raises; then nothing of them was sent.
    """
    if client.is_closed:
        raise errors.ConnectionClosedError
    if client.is_draining_pubs:
        raise errors.ConnectionDrainingError
    if not client.is_connected:
        raise errors.ConnectionReconnectingError
    await client._send_command(commands)  # noqa: SLF001 - there is no public way
    if client._flush_queue is not None and client._flush_queue.empty():  # noqa: SLF001
        await client._flush_pending()  # noqa: SLF001
