"""The beginning of a connection over TLS: who has not finished its handshake is counted already.

Left to itself, a loop tells a protocol of its connection when the handshake is done, and lets as
many be under way as there are files, for a minute each.
"""

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from typing import Any, cast

from ironcart.toolkit.http.connection import Connection

HANDSHAKE_S_MAX = 5.0
# How long we wait to be said goodbye to: meanwhile a place is taken, and a drain goes on.
GOODBYE_S_MAX = 1.0
# As much as a record of TLS holds. asyncio keeps sixteen times that for each connection, idle or
# not: four thousand callers who say nothing would be a gigabyte.
READ_BYTES_MAX = 16 * 1024


class Handshake(SSLProtocol):
    """What asyncio itself puts before a protocol, but counted from its first moment.

    Through `start_tls`, what a caller sends right behind its handshake comes before the connection.
    """

    max_size = READ_BYTES_MAX

    def __init__(self, connection: Connection, context: ssl.SSLContext) -> None:
        self._connection = connection
        super().__init__(
            asyncio.get_running_loop(),
            connection,
            context,
            cast("Any", None),  # Nobody waits for it.
            server_side=True,
            ssl_handshake_timeout=cast("Any", HANDSHAKE_S_MAX),
            ssl_shutdown_timeout=cast("Any", GOODBYE_S_MAX),
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake; where there is no room, hang up without a word."""
        plain = cast("asyncio.Transport", transport)
        if self._connection.come_in(plain):
            super().connection_made(plain)
        else:
            plain.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Make room, also where the handshake was never done."""
        super().connection_lost(exc)
        self._connection.go()
        # A cycle of these would keep all of it until the collector comes round, which is seldom.
        del self._connection
        self._sslobj = None


def over_tls(make: Callable[..., Connection], context: ssl.SSLContext) -> Callable[..., Handshake]:
    """Put TLS before the connections that `make` makes."""

    def secured(**kwargs: Any) -> Handshake:
        return Handshake(make(**kwargs), context)

    return secured
