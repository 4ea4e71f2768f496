"""The only place that reaches below what nats-py offers: it costs half as much for each message.

Many commands go out in one write: each `publish` of the client is two coroutines, a dictionary of
headers checked one by one, and a look at the queue of its flusher. What comes for a listener is
handed over at once, not through an object, a queue and a task.
"""

from collections.abc import Callable, Mapping, Sequence

from nats import errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

# Subject, reply subject, body and headers of one message.
Listener = Callable[[str, str, bytes, Mapping[str, str]], None]
# What stands before the headers of a message: NATS/1.0 and a line break.
_VERSION_BYTES = 10
_SPACE = ord(" ")


class WireClient(Client):
    """nats-py's client, and `listen`."""

    def __init__(self) -> None:
        super().__init__()
        self._listeners: dict[int, Listener] = {}

    async def listen(self, subject: str, hear: Listener) -> Subscription:
        """Have `hear` called for each message, in order, as soon as it has been read.

        Nobody may know the subject before this returns: what comes earlier is lost. Unsubscribing
        ends it.
        """
        subscription = await self.subscribe(subject)
        self._listeners[subscription._id] = hear  # noqa: SLF001 - see above
        return subscription

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        hear = self._listeners.get(sid)
        if hear is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        elif sid not in self._subs:
            del self._listeners[sid]
        else:
            # A status has its own way of being written.
            usual = not headers or headers[_VERSION_BYTES - 2] != _SPACE
            found = read_headers(headers) if usual else await self._process_headers(headers)
            try:
                hear(subject.decode(), reply.decode(), data, found or {})
            except Exception as error:  # noqa: BLE001 - or nothing would be read any more
                await self._error_cb(error)


def read_headers(raw: bytes) -> dict[str, str]:
    """Read headers as nats-py does: names that are no tokens are left out."""
    if not raw:
        return {}
    found: dict[str, str] = {}
    for line in raw[_VERSION_BYTES:].decode(errors="replace").split("\r\n"):
        name, colon, value = line.partition(":")
        name = name.strip()
        if colon and name.isascii() and name.isprintable() and " " not in name:
            found[name] = value.strip()
    return found


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
