"""Many commands in one write: the only place that reaches below what nats-py offers.

Each `publish` of the client is two coroutines, a dictionary of headers checked one by one, and a
look at the queue of its flusher; for a batch all of that is had once.
"""

from collections.abc import Mapping, Sequence

from nats import errors
from nats.aio.client import Client


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
