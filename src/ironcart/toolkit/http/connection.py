"""One connection: HTTP/1.1 with a limit on everything that a caller can make us hold or wait for.

uvicorn parses and answers; what is added here refuses, as a problem, a head or a body that is too
large, a request that takes too long to arrive, too many in a row, and what is not HTTP. A refusal
is said once the answers before it are out; then we listen no more, and soon hang up.
"""

import asyncio
from collections import OrderedDict
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE, STATUS_LINE, HttpToolsProtocol

from ironcart.toolkit import telemetry
from ironcart.toolkit.http.access.gate import Headers
from ironcart.toolkit.http.front import Front
from ironcart.toolkit.http.problems import RETRY_AFTER_S_MIN, Problem, retry_after
from ironcart.toolkit.http.routes import AT_ONCE, BODY_BYTES_MAX, PASS

# Request line and headers together.
HEAD_BYTES_MAX = 16 * 1024
HEADERS_MAX = 100
# From its first byte to its last; a new connection has as long for its first byte.
ARRIVE_S_MAX = 10.0
# Answers that a caller does not read: what is in the way for so long is dropped.
UNREAD_S_MAX = 30.0
# Requests that wait behind the one under way, on one connection.
PIPELINED_MAX = 16
CONNECTIONS_MAX = 4_000
# When all are taken, one that has sent no whole request for this long gives way.
GIVES_WAY_AFTER_S = 1.0
# A caller who is still sending would not see its answer if we hung up at once.
LINGER_S = 1.0
LINGER_BYTES_MAX = 1024 * 1024
# With more refusals a second than this, who was refused is not read until it may come back:
# turning a flood away must not cost more than what it is turned away from.
REFUSALS_A_SECOND_MAX = 100
NOT_HTTP = "Invalid HTTP request received."


class Room:
    """The connections of a server: how many there are, and which have been waiting longest."""

    def __init__(self, connections_max: int = CONNECTIONS_MAX) -> None:
        self._max = connections_max
        self._all = 0
        self._waiting: OrderedDict[Connection, float] = OrderedDict()
        self._second, self._refusals = 0, 0

    def enter(self, connection: "Connection", now: float) -> bool:
        """Take a connection in, if need be for one that waits; False when there is no room."""
        if self._all >= self._max and not self._make_room(now):
            return False
        self._all += 1
        telemetry.http_connections.set(self._all)
        self.waits(connection, now)
        return True

    def _make_room(self, now: float) -> bool:
        if not self._waiting:
            return False
        oldest, since = next(iter(self._waiting.items()))
        if now - since < GIVES_WAY_AFTER_S:
            return False
        self.leave(oldest)
        oldest.drop()
        return True

    def waits(self, connection: "Connection", now: float) -> None:
        """The connection waits for a whole request, from now on."""
        self._waiting[connection] = now

    def works(self, connection: "Connection") -> None:
        """A whole request has arrived on the connection."""
        self._waiting.pop(connection, None)

    def is_flooded(self, now: float) -> bool:
        """Count one more refusal; says whether there are too many."""
        if int(now) != self._second:
            self._second, self._refusals = int(now), 0
        self._refusals += 1
        return self._refusals > REFUSALS_A_SECOND_MAX

    def leave(self, connection: "Connection") -> None:
        """The connection is over."""
        if connection.inside:
            connection.inside = False
            self._all -= 1
            telemetry.http_connections.set(self._all)
        self._waiting.pop(connection, None)


class Connection(HttpToolsProtocol):
    """HTTP/1.1 within limits."""

    def __init__(self, *args: Any, room: Room, front: Front, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._room, self._front = room, front
        self._turned_away: Problem | None = None
        self.inside = False
        self._deaf = False  # A refusal was decided: nothing that is sent counts any more.
        self._last_words: bytes | None = None
        self._arriving = False  # A request has begun, and has not ended.
        self._in_head = False
        # `_late_bytes` came after the head's first read, and may be part of one unfinished header.
        self._head_bytes = self._late_bytes = self._body_bytes = self._ignored_bytes = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._unread_alarm: asyncio.TimerHandle | None = None

    # --- the life of a connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Come in, or hear that there is no room."""
        super().connection_made(transport)
        if self.inside or self.come_in(transport):
            self._set_alarm()
        else:
            self._refuse(503, "too many connections: come back soon", retry_after(1.0))

    def come_in(self, transport: asyncio.Transport) -> bool:
        """Be counted, before the handshake where there is one; False when there is no room."""
        self.transport = transport
        self.inside = self._room.enter(self, self.loop.time())
        return self.inside

    def go(self) -> None:
        """Be counted no more."""
        self._room.leave(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the room, and nothing behind: the last request and its scope know their connection,
        and would stay with it until the collector comes to the oldest of what there is."""
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self.scope, self.cycle = None, None  # type: ignore[assignment]
        self.pipeline.clear()
        self.go()
        for alarm in (self._alarm, self._unread_alarm):
            if alarm is not None:
                alarm.cancel()

    def drop(self) -> None:
        """Hang up at once, without a word."""
        self.transport.abort()

    def eof_received(self) -> None:
        """Hang up on who has hung up, where nothing is left to say."""
        if self._deaf and self._last_words is None:
            self.transport.close()

    # --- reading ---

    def data_received(self, data: bytes) -> None:
        """Parse, within the limits."""
        if self._deaf:
            self._ignored_bytes += len(data)
            if self._ignored_bytes > LINGER_BYTES_MAX:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        was_in_head = self._in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # What it would become, it does not become; the request is answered as it is.
        except httptools.HttpParserError:
            self.send_400_response(NOT_HTTP)
        if self._deaf:
            return
        if was_in_head and self._in_head:
            self._late_bytes += len(data)
            if self._head_bytes + self._late_bytes > HEAD_BYTES_MAX:
                self._refuse(431, f"send at most {HEAD_BYTES_MAX} bytes of headers")
                return
        if self._alarm is None and (self._arriving or self._is_idle()):
            self._set_alarm()

    def _set_alarm(self) -> None:
        self._alarm = self.loop.call_later(ARRIVE_S_MAX, self._too_slow)

    def _too_slow(self) -> None:
        self._alarm = None
        if self._deaf:
            return
        if self.flow.read_paused:  # It is we who do not read.
            self._set_alarm()
        elif self._arriving:
            self._refuse(408, f"a request must arrive within {ARRIVE_S_MAX:g} s")
        elif self._is_idle():
            self.transport.close()

    def _is_idle(self) -> bool:
        """Whether nothing is under way that we have to answer."""
        done = self.cycle is None or self.cycle.response_complete or self.cycle.disconnected
        return done and not self.pipeline

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._deaf:
            raise _RefusedError
        if len(self.pipeline) >= PIPELINED_MAX:
            self._refuse(429, f"send at most {PIPELINED_MAX} requests before reading an answer")
            raise _RefusedError
        self._arriving = self._in_head = True
        self._head_bytes = self._late_bytes = self._body_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the path has arrived."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has arrived."""
        self._count_head(len(name) + len(value) + 4)
        super().on_header(name, value)
        if len(self.headers) > HEADERS_MAX:
            self._refuse(431, f"send at most {HEADERS_MAX} headers")
            raise _RefusedError
        long = name.lower() == b"content-length" and value.isdigit()
        if long and int(value) > BODY_BYTES_MAX:
            self._too_large()

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(431, f"send at most {HEAD_BYTES_MAX} bytes of headers")
            raise _RefusedError

    def on_headers_complete(self) -> None:
        """The head has arrived: the app may begin, unless it is refused at the door."""
        plain = self.url.startswith(b"/") and b"%" not in self.url and b"#" not in self.url
        if plain and self._is_idle():  # Else the app itself asks.
            method, path = self.parser.get_method().decode(), self.url.partition(b"?")[0]
            address = self.client[0] if self.client else ""
            found = self._front.enter(method, path.decode("latin-1"), self.headers, address)
            if isinstance(found, Problem):
                self._turned_away, self._in_head = found, False
                if self.expect_100_continue:  # The body is not sent before it is asked for.
                    self._refuse_with(found)
                    raise _RefusedError
                return
            if found is not None:
                self.scope[PASS] = found  # type: ignore[literal-required]
        super().on_headers_complete()  # Of what is no path it makes nothing that could be answered.
        self._in_head = False
        # Not with its cycle: that has the scope, and a ring is freed by the collector only.
        self.scope[AT_ONCE] = self._answer_at_once  # type: ignore[literal-required]

    def on_body(self, body: bytes) -> None:
        """A part of the body has arrived."""
        self._body_bytes += len(body)
        if self._body_bytes > BODY_BYTES_MAX:
            self._too_large()
        if self._turned_away is None:
            super().on_body(body)

    def _too_large(self) -> None:
        self._refuse(413, f"send at most {BODY_BYTES_MAX} bytes")
        raise _RefusedError

    def on_message_complete(self) -> None:
        """The request has arrived."""
        self._arriving = False
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._room.works(self)
        if self._turned_away is not None:
            self._turn_away(self._turned_away)
        else:
            super().on_message_complete()

    def _turn_away(self, refusal: Problem) -> None:
        """Answer in place of the app; the connection may go on."""
        self._turned_away = None
        last = not self.parser.should_keep_alive()
        self.transport.write(refusal.as_bytes(last=last))
        if last:
            self.transport.close()
            return
        super().on_response_complete()
        now = self.loop.time()
        self._room.waits(self, now)
        if self._room.is_flooded(now):
            self.flow.pause_reading()
            self.loop.call_later(RETRY_AFTER_S_MIN, self.flow.resume_reading)

    # --- answering ---

    def _answer_at_once(self, scope: Any, status: int, headers: Headers, body: bytes) -> bool:
        """Write an answer whole; whatever is unusual is left to uvicorn, and then this is False.

        uvicorn writes in two calls, each with all the checks that a stream of any length needs.
        """
        cycle = self.cycle
        if cycle is None or cycle.scope is not scope:  # Hung up, or others came in behind it.
            return False
        usual = cycle.keep_alive and not cycle.disconnected and not self.flow.write_paused
        if not usual or scope["method"] == "HEAD" or status not in STATUS_LINE:
            return False
        named = [*cycle.default_headers, *headers]
        head = b"\r\n".join([name + b": " + value for name, value in named])
        if HEADER_VALUE_RE.search(b"".join([value for _, value in named])):
            return False
        cycle.waiting_for_100_continue = False
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        self.transport.write(STATUS_LINE[status] + head + b"\r\n\r\n" + body)
        cycle.on_response()
        return True

    def on_response_complete(self) -> None:
        """An answer is out; say what is left to say, or wait for the next request."""
        was_last = not self.pipeline
        super().on_response_complete()
        if not was_last or self.transport.is_closing():
            return
        if self._last_words is not None:
            self._say_last_words()
        elif self.inside:
            self._room.waits(self, self.loop.time())

    def pause_writing(self) -> None:
        """The caller does not read as fast as we answer."""
        super().pause_writing()
        if self._unread_alarm is None:
            self._unread_alarm = self.loop.call_later(UNREAD_S_MAX, self.drop)

    def resume_writing(self) -> None:
        """The caller has caught up."""
        super().resume_writing()
        if self._unread_alarm is not None:
            self._unread_alarm.cancel()
            self._unread_alarm = None

    # --- refusing ---

    def send_400_response(self, msg: str) -> None:
        """Say that this was not HTTP, unless it was refused for something else already."""
        if not self._deaf:
            self._refuse(400, msg)

    def _refuse(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        telemetry.http_refused.labels(status).inc()
        self._refuse_with(Problem(status, detail, headers=headers))

    def _refuse_with(self, problem: Problem) -> None:
        """Answer what is arriving with a problem, after the answers that come before it."""
        self._deaf = True
        self._last_words = problem.as_bytes(last=True)
        in_app = not self._in_head and self._turned_away is None
        if self._arriving and in_app:  # The app has it, or will have it.
            if self.pipeline:
                self.pipeline.popleft()
                return
            if self.cycle.response_started:
                # Early answers stand; a second answer could not be told from the first.
                self.transport.close()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._is_idle():
            self._say_last_words()

    def _say_last_words(self) -> None:
        assert self._last_words is not None
        self.transport.write(self._last_words)
        self._last_words = None
        if not self.inside or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER_S, self.transport.close)


class _RefusedError(httptools.HttpParserError):
    """Stops the parser; what to say is decided already."""
