"""The mail server: kept connections, one conversation at a time on each, and a breaker around it.

aiosmtplib connects, upgrades to TLS and logs in; then the connection is ours, because commands that
travel together (RFC 2920), and with the message (RFC 3030), cost a fraction of commands that each
wait for their answer.
"""

import asyncio
import ssl
import time
import urllib.parse
from collections import deque
from dataclasses import dataclass
from typing import cast

import aiosmtplib

from ironcart.services.notifications.gateway.letters import Letter
from ironcart.toolkit.outcomes import Refused, Unavailable
from ironcart.toolkit.resilience import Breaker
from ironcart.toolkit.telemetry import watch_breaker

CONNECTIONS_MAX = 8
# Who waits in line longer than `SLOT_TIMEOUT_S` is turned away: at half a second a letter, nobody.
LETTERS_AT_ONCE_MAX = 16 * CONNECTIONS_MAX
# All waits of one call together stay below the deadline of a job's call.
SLOT_TIMEOUT_S = 8.0
CONNECT_TIMEOUT_S = 5.0
CONVERSATION_TIMEOUT_S = 10.0
# Mail servers drop idle and long-lived connections; we leave before that.
IDLE_S_MAX = 20.0
LETTERS_PER_CONNECTION_MAX = 500
# A connection that has rested longer may be dead without our knowing: there a message waits until
# the server has answered, so that a dead one leaves nothing in doubt.
RESTED_S_MAX = 1.0
REPLY_BYTES_MAX = 64 * 1024
SMTP_PORT = 25
SMTPS_PORT = 465
SERVICE_CLOSING = 421
# Answers to a recipient that are about us, not about the recipient: bad sequence, not logged in.
NOT_ABOUT_THE_RECIPIENT = (502, 503, 530, 535)
_TOO_SLOW = "the mail server does not answer in time"


@dataclass(frozen=True, slots=True)
class Server:
    """Where mail is handed in."""

    host: str
    port: int
    tls: bool
    user: str | None
    password: str | None

    def __repr__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The mail server will never take this letter for this recipient."""

    code: int


@dataclass(frozen=True, slots=True)
class _Deferral:
    """The mail server does not want this letter now; it is otherwise well."""

    code: int


_Verdict = Refusal | _Deferral | None


def mail_server(url: str) -> Server:
    """Read `smtp://` or `smtps://[user:password@]host[:port]`; raises `ValueError`."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
        raise ValueError("use smtp://host:port or smtps://user:password@host:port")
    tls = parts.scheme == "smtps"
    return Server(
        parts.hostname,
        parts.port or (SMTPS_PORT if tls else SMTP_PORT),
        tls,
        urllib.parse.unquote(parts.username) if parts.username else None,
        urllib.parse.unquote(parts.password) if parts.password else None,
    )


class Mailer:
    """Hands letters to one mail server, over a few connections that are kept."""

    def __init__(
        self,
        server: Server,
        sender: str,
        *,
        breaker: Breaker | None = None,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self.breaker = breaker or Breaker("smtp", on_change=watch_breaker)
        watch_breaker(self.breaker.name, self.breaker.state, self.breaker.state)
        self._server, self._sender = server, sender
        self._slots = _Slots(connections_max)
        self._idle: list[_Wire] = []

    async def send(self, letter: Letter) -> Refusal | None:
        """Hand in one letter: None when the server has it, or the refusal when it never will.

        Raises `Unavailable` when the server is away, does not want it now, or did not say whether
        it has it, and `Refused` when it does not accept our credentials.
        """
        await self._slots.take()
        try:
            with self.breaker.guard():
                verdict = await self._deliver(letter)
        finally:
            self._slots.give()
        if isinstance(verdict, _Deferral):
            # One recipient's greylisting or full mailbox says nothing about the server.
            raise Unavailable(f"the mail server defers the recipient: {verdict.code}")
        return verdict

    async def close(self) -> None:
        """Say goodbye on every idle connection."""
        for wire in self._idle:
            wire.quit()
        self._idle.clear()

    async def _deliver(self, letter: Letter) -> _Verdict:
        kept = self._kept()
        wire = kept or await self._connect()
        try:
            return await self._converse(wire, letter)
        except Unavailable:
            # The server may have dropped a kept connection just as we took it.
            if kept is None or wire.content_sent or not wire.lost:
                raise
        return await self._converse(await self._connect(), letter)

    async def _converse(self, wire: "_Wire", letter: Letter) -> _Verdict:
        # A bare timer: `asyncio.timeout` costs three times as much, for each letter.
        alarm = asyncio.get_running_loop().call_later(CONVERSATION_TIMEOUT_S, wire.give_up)
        try:
            return await wire.deliver(self._sender.encode(), letter)
        finally:
            alarm.cancel()
            if wire.reusable:
                self._idle.append(wire)
            else:
                wire.abandon()

    def _kept(self) -> "_Wire | None":
        while self._idle:
            wire = self._idle.pop()
            if not wire.lost and time.monotonic() - wire.idle_since < IDLE_S_MAX:
                return wire
            wire.quit()
        return None

    async def _connect(self) -> "_Wire":
        server = self._server
        client = aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            use_tls=server.tls,
            username=server.user,
            password=server.password,
            local_hostname=self._sender.rpartition("@")[2],
            timeout=CONNECT_TIMEOUT_S,
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await client.connect()
        except aiosmtplib.SMTPAuthenticationError as error:
            if error.code >= 500:
                raise Refused(
                    f"the mail server refuses the credentials in IRONCART_SMTP_URL ({error.code})"
                ) from error
            raise Unavailable(f"mail server: login fails for now ({error.code})") from error
        except (OSError, TimeoutError, ssl.SSLError, aiosmtplib.SMTPException) as error:
            raise Unavailable(f"mail server: {str(error) or type(error).__name__}") from error
        return _Wire(cast("asyncio.Transport", client.transport), client.esmtp_extensions)


class _Slots:
    """So many may go in at once; the others wait in line, each for `SLOT_TIMEOUT_S` at most."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._line: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Go in; raises `Unavailable` when that takes too long."""
        if self._free:
            self._free -= 1
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._line.append(turn)
        alarm = loop.call_later(SLOT_TIMEOUT_S, self._turn_away, turn)
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled just as our turn came: it is the next one's.
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give()
            raise
        finally:
            alarm.cancel()

    def give(self) -> None:
        """Go out, and let the next one in; a slot with somebody waiting is never free."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _turn_away(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            turn.set_exception(Unavailable("every connection to the mail server is busy"))


class _Wire(asyncio.Protocol):
    """One connection on which letters are handed in, one after the other."""

    def __init__(self, transport: asyncio.Transport, extensions: dict[str, str]) -> None:
        self.lost = False
        self.content_sent = False
        self.reusable = False
        self.idle_since = time.monotonic()
        self._transport = transport
        self._pipelining = "pipelining" in extensions
        self._chunking = self._pipelining and "chunking" in extensions
        self._international = "smtputf8" in extensions
        self._letters = 0
        self._unread = b""
        self._codes: list[int] = []
        self._wanted = 0
        self._answered: asyncio.Future[None] | None = None
        self._overdue = False
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        """Read whole replies; of one in several lines the last counts."""
        if self._answered is None:  # Nobody has asked: it could not be told from an answer.
            self.lost = True
            self._transport.abort()
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        if len(self._unread) > REPLY_BYTES_MAX:
            self._transport.abort()
            return
        for line in lines:
            if line[3:4] != b"-":
                self._codes.append(int(line[:3]) if line[:3].isdigit() else 0)
        if self._answered is not None and len(self._codes) >= self._wanted:
            self._wake()

    def connection_lost(self, _error: Exception | None) -> None:
        """Wake whoever waits for an answer."""
        self.lost = True
        self.reusable = False
        self._wake()

    def quit(self) -> None:
        """Leave politely, without waiting for the answer."""
        if not self.lost:
            self._transport.write(b"QUIT\r\n")
            self._transport.close()

    def abandon(self) -> None:
        """Leave a conversation that did not go as planned; a message half sent is dropped."""
        self._transport.abort()

    def give_up(self) -> None:
        """Wait no longer in this conversation: the server is `Unavailable`."""
        self._overdue = True
        self._wake()

    async def deliver(self, sender: bytes, letter: Letter) -> _Verdict:
        """Hand in one letter; raises `Unavailable`. Reusable afterwards only when all went well."""
        self.content_sent = self.reusable = self._overdue = False
        if letter.international and not self._international:
            return Refusal(553)
        utf8 = b" SMTPUTF8" if letter.international else b""
        envelope = (
            b"MAIL FROM:<%b>%b\r\n" % (sender, utf8),
            b"RCPT TO:<%b>\r\n" % letter.recipient,
        )
        if self._chunking and time.monotonic() - self.idle_since < RESTED_S_MAX:
            return await self._deliver_at_once(b"".join(envelope), letter.content)
        if self._pipelining:
            mail, rcpt, data = await self._ask(b"".join(envelope) + b"DATA\r\n", 3)
            self._check_sender(mail)
        else:
            (mail,) = await self._ask(envelope[0])
            self._check_sender(mail)
            (rcpt,) = await self._ask(envelope[1])
            (data,) = await self._ask(b"DATA\r\n") if rcpt < 300 else (0,)
        if verdict := _about_recipient(rcpt):
            return verdict
        if data != 354:
            raise Unavailable(f"the mail server takes no message now: {data}")
        self.content_sent = True
        (taken,) = await self._ask(letter.content.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        verdict = _about_content(taken)
        self._rest()
        return verdict

    async def _deliver_at_once(self, envelope: bytes, content: bytes) -> _Verdict:
        """Hand in one letter in one go: a server drops a message whose envelope it refuses."""
        self.content_sent = True
        message = b"BDAT %d LAST\r\n%b" % (len(content), content)
        try:
            mail, rcpt, taken = await self._ask(envelope + message, 3)
        except Unavailable:
            # The server had ended this connection, as many do after so many letters: it said so
            # to MAIL, or nothing. What it never began to answer it may be given again.
            self.content_sent = self._codes[:1] not in ([], [SERVICE_CLOSING])
            raise
        self._check_sender(mail)
        verdict = _about_recipient(rcpt) or _about_content(taken)
        if verdict is None:  # After a refusal it is not certain where the server stands.
            self._rest()
        return verdict

    def _rest(self) -> None:
        """Stay for another letter, if there may be one on this connection."""
        self._letters += 1
        in_step = len(self._codes) == self._wanted and not self._unread
        self.reusable = in_step and not self.lost and self._letters < LETTERS_PER_CONNECTION_MAX
        self.idle_since = time.monotonic()

    async def _ask(self, text: bytes, answers: int = 1) -> list[int]:
        if self.lost:
            raise Unavailable("the mail server hung up")
        if self._overdue:
            raise Unavailable(_TOO_SLOW)
        self._codes, self._wanted = [], answers
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(text)
        await self._answered
        self._answered = None
        if len(self._codes) < answers and self._overdue:
            raise Unavailable(_TOO_SLOW)
        if len(self._codes) < answers or SERVICE_CLOSING in self._codes[:answers]:
            raise Unavailable("the mail server hung up")
        return self._codes[:answers]

    def _wake(self) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def _check_sender(self, code: int) -> None:
        if not 200 <= code < 300:
            raise Unavailable(f"the mail server refuses our sender, IRONCART_MAIL_FROM: {code}")


def _about_recipient(code: int) -> _Verdict:
    if 200 <= code < 300:
        return None
    if code >= 500 and code not in NOT_ABOUT_THE_RECIPIENT:
        return Refusal(code)
    if 400 <= code < 500:
        return _Deferral(code)
    raise Unavailable(f"the mail server does not take recipients now: {code}")


def _about_content(code: int) -> _Verdict:
    if 200 <= code < 300:
        return None
    if code < 500 or code in NOT_ABOUT_THE_RECIPIENT:
        raise Unavailable(f"the mail server does not take the message now: {code}")
    return Refusal(code)
