"""The SMTP catcher: one asyncio.Protocol; pipelining, chunks and kept connections included.
aiosmtpd costs some 600 µs of CPU a mail, which would make the mailbox dearer than any service.
"""

import asyncio
import re
import socket
from collections.abc import Callable
from typing import cast

from ironcart.embedded.sandbox.faults import Faults
from ironcart.embedded.sandbox.mailbox import Mailbox

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_COMMAND_BYTES = 4096
MAX_LINE_BYTES = 998  # RFC 5321 4.5.3.1.6, without its CRLF
MAX_RECIPIENTS = 100
BACKLOG = 1024

_GREETING = b"220 localhost ironcart sandbox ESMTP\r\n"
_EHLO = (
    b"250-localhost\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n"
    b"250-ENHANCEDSTATUSCODES\r\n250 SIZE %d\r\n" % MAX_MESSAGE_BYTES
)
_OK = b"250 2.0.0 OK\r\n"
_TOO_LARGE = b"552 5.3.4 Message too large\r\n"
_NO_RECIPIENT = b"503 5.5.1 Need RCPT before the message\r\n"
_LINE_TOO_LONG = b"421 4.7.0 Command line too long, goodbye\r\n"
_GOODBYES = (b"221", b"421", b"552")
_FIXED = {
    b"EHLO": _EHLO,
    b"HELO": b"250 localhost\r\n",
    b"RSET": _OK,
    b"NOOP": _OK,
    b"VRFY": b"252 2.5.2 Cannot verify, will take it\r\n",
    b"QUIT": b"221 2.0.0 Bye\r\n",
}
_FROM = re.compile(rb"FROM: ?<[^<>\s]*>((?: [^\s]+)*)$", re.IGNORECASE)
_TO = re.compile(rb"TO: ?<([^<>\s]+)>(?: [^\s]+)*$", re.IGNORECASE)
_CHUNK = re.compile(rb"(\d{1,12})( LAST)?$", re.IGNORECASE)
_SIZE = re.compile(rb" SIZE=(\d{1,12})(?: |$)", re.IGNORECASE)


class SmtpConnection(asyncio.Protocol):
    """One SMTP connection. The faults of mail strike here, each at most once a message."""

    def __init__(
        self, mailbox: Mailbox, faults: Faults, connections: "set[SmtpConnection]"
    ) -> None:
        self._mailbox = mailbox
        self._faults = faults
        self._connections = connections
        self._received = bytearray()
        self._scanned = 0
        self._next: Callable[[], bytes | None] = self._next_command
        self._chunk_bytes, self._chunk_is_last = 0, False
        self._content = b""
        self._greeted = False
        self._in_mail = False
        self._recipients: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, or hang up under `mail_down`."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)
        if not self._hang_up_when_down():
            self._transport.write(_GREETING)

    def connection_lost(self, _error: Exception | None) -> None:
        """The client has left; an unfinished message is gone with it."""
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Take every command and message that is whole; answer them all in one write."""
        self._received += data
        answers = []
        while not self._transport.is_closing():
            answer = self._next()
            if answer is None:
                break
            answers.append(answer)
            if answer.startswith(_GOODBYES):
                self._transport.write(b"".join(answers))
                self._transport.close()
                return
        if answers and not self._transport.is_closing():
            self._transport.write(b"".join(answers))

    def stop(self) -> None:
        """Close the connection."""
        self._transport.close()

    def _next_command(self) -> bytes | None:
        end = self._received.find(b"\n", 0, MAX_COMMAND_BYTES)
        if end < 0:
            return None if len(self._received) < MAX_COMMAND_BYTES else _LINE_TOO_LONG
        line = bytes(self._received[:end]).rstrip()
        del self._received[: end + 1]
        verb, _, argument = line.partition(b" ")
        verb = verb.upper()
        match verb:
            case b"MAIL":
                return self._mail(argument.strip())
            case b"RCPT":
                return self._recipient(argument.strip())
            case b"DATA":
                return self._data()
            case b"BDAT":
                return self._chunk(argument.strip())
            case b"EHLO" | b"HELO" | b"RSET" as resetting:
                self._reset()
                self._greeted = self._greeted or resetting != b"RSET"
        return _FIXED.get(verb, b"500 5.5.2 Command not recognized\r\n")

    def _mail(self, argument: bytes) -> bytes | None:
        if self._hang_up_when_down():
            return None
        sender = _FROM.match(argument)
        if not self._greeted or self._in_mail:
            return b"503 5.5.1 Bad sequence of commands\r\n"
        if sender is None:
            return b"501 5.5.4 Syntax: MAIL FROM:<address>\r\n"
        size = _SIZE.search(sender[1])
        if size is not None and int(size[1]) > MAX_MESSAGE_BYTES:
            return _TOO_LARGE
        self._in_mail = True
        return _OK

    def _recipient(self, argument: bytes) -> bytes:
        if not self._in_mail:
            return b"503 5.5.1 Need MAIL before RCPT\r\n"
        recipient = _TO.match(argument)
        if recipient is None:
            return b"501 5.5.4 Syntax: RCPT TO:<address>\r\n"
        if len(self._recipients) >= MAX_RECIPIENTS:
            return b"452 4.5.3 Too many recipients\r\n"
        self._recipients.append(recipient[1].decode("utf-8", "replace"))
        return _OK

    def _data(self) -> bytes:
        if not self._recipients:
            return _NO_RECIPIENT
        self._next = self._next_message
        self._scanned = 0
        return b"354 End data with <CR><LF>.<CR><LF>\r\n"

    def _next_message(self) -> bytes | None:
        received = self._received
        if received.startswith(b".\r\n"):
            content, rest = b"", 3
        else:
            # Only what is new can hold the end, but for the few bytes it may have begun in.
            end = received.find(b"\r\n.\r\n", max(0, self._scanned - 4))
            self._scanned = len(received)
            if max(end, 0) > MAX_MESSAGE_BYTES or (end < 0 and self._scanned > MAX_MESSAGE_BYTES):
                return _TOO_LARGE
            if end < 0:
                return None
            content, rest = bytes(received[: end + 2]), end + 5
        del received[:rest]
        # The sender doubled every dot that begins a line.
        return self._verdict(content.removeprefix(b".").replace(b"\r\n.", b"\r\n"))

    def _chunk(self, argument: bytes) -> bytes | None:
        chunk = _CHUNK.match(argument)
        if chunk is None:  # Nobody knows where it ends.
            return b"421 5.5.4 Syntax: BDAT size [LAST], goodbye\r\n"
        self._chunk_bytes, self._chunk_is_last = int(chunk[1]), chunk[2] is not None
        if len(self._content) + self._chunk_bytes > MAX_MESSAGE_BYTES:
            return _TOO_LARGE
        self._next = self._next_chunk
        return self._next_chunk()

    def _next_chunk(self) -> bytes | None:
        """Take a chunk, also one that is not wanted: its sender may not have waited to be told."""
        end = self._chunk_bytes
        if len(self._received) < end:
            return None
        self._next = self._next_command
        chunk = bytes(self._received[:end])
        del self._received[:end]
        if not self._recipients:
            return _NO_RECIPIENT
        self._content += chunk
        return self._verdict(self._content) if self._chunk_is_last else _OK

    def _verdict(self, content: bytes) -> bytes:
        """Keep the message or say why not. A fault answers here, where a message ends, so that a
        client that pipelines stays in step."""
        recipients = self._recipients
        self._reset()
        if self._faults.strikes("mail_error"):
            return b"451 4.3.0 Temporary failure (a sandbox fault)\r\n"
        if self._faults.strikes("mail_reject"):
            return b"550 5.7.1 Message rejected (a sandbox fault)\r\n"
        if _has_long_line(content):
            return b"500 5.6.0 Line too long (see RFC 5321 4.5.3.1.6)\r\n"
        try:
            self._mailbox.keep(recipients, content)
        except OSError:
            return b"452 4.3.1 Cannot be stored\r\n"
        return _OK

    def _reset(self) -> None:
        self._next = self._next_command
        self._in_mail = False
        self._recipients = []
        self._content = b""

    def _hang_up_when_down(self) -> bool:
        if self._faults.strikes("mail_down"):
            self._transport.abort()
            return True
        return False


def _has_long_line(content: bytes) -> bool:
    """Whether a line is longer than it may be; looks only as often as it has to."""
    start = 0
    while len(content) - start > MAX_LINE_BYTES:
        end = content.rfind(b"\r\n", start, start + MAX_LINE_BYTES + 2)
        if end < 0:
            return True
        start = end + 2
    return False


class MailServer:
    """Catches mail on a listening socket until it is stopped."""

    def __init__(self, mailbox: Mailbox, faults: Faults) -> None:
        self._mailbox = mailbox
        self._faults = faults
        self._connections: set[SmtpConnection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, sock: socket.socket) -> None:
        """Accept, from now."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: SmtpConnection(self._mailbox, self._faults, self._connections),
            sock=sock,
            backlog=BACKLOG,
        )

    def stop(self) -> None:
        """Accept no more, and close every connection."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.stop()
