"""A continuous pull consumer that asks only for free slots.

A message therefore never waits in a client's buffer while its ack_wait runs. Pull requests do not
survive a reconnect, and a silent one is given up after a few missed heartbeats: then others are
sent over a new inbox, and the old one is listened to until nothing can come over it any more.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import structlog
from msgspec import Struct
from nats.aio.subscription import Subscription

from ironcart.toolkit.broker.connection import NOT_NOW, Broker
from ironcart.toolkit.broker.provisioning import consumer_exists
from ironcart.toolkit.broker.wire import answers, write
from ironcart.toolkit.outcomes import Refused, Unavailable
from ironcart.toolkit.topology import NS_PER_S

PULL_LIFE_S = 2.0
HEARTBEAT_S = 0.5
HEARTBEATS_MISSED_MAX = 4
PAUSE_AFTER_REFUSAL_S = 0.25
# How long after a lost pull has been given up something may still come of it.
LATE_S = PULL_LIFE_S + HEARTBEAT_S
# Nobody answers pulls while a stream has no leader; for longer than this the consumer may be gone.
UNHEARD_PULLS_MAX = 8
ACK = b"+ACK"


class Delivery(Struct):
    """One message as it was delivered, before anybody has looked into it."""

    stream: str
    stream_seq: int
    subject: str
    body: bytes
    headers: Mapping[str, str]
    delivered: int
    stored_at: float
    reply: str

    @classmethod
    def read(cls, subject: str, reply: str, body: bytes, headers: Mapping[str, str]) -> "Delivery":
        """Read the reply subject: `$JS.ACK.[domain.account.]stream.consumer.n.seq.cseq.at.left`."""
        tokens = reply.split(".")
        at = 2 if len(tokens) == 9 else 4
        stream, _, delivered, stream_seq, _, stored_ns = tokens[at : at + 6]
        return cls(
            stream,
            int(stream_seq),
            subject,
            body,
            headers,
            int(delivered),
            int(stored_ns) / NS_PER_S,
            reply,
        )


@dataclass(slots=True, eq=False)
class _Line:
    """An inbox, and how much was asked for over it that is neither here nor given back.

    That may be too much, where a pull was lost, and never too little. What comes late over an old
    line does not count as what was asked for over the next one.
    """

    inbox: str
    subscription: Subscription
    asked: int = 0
    reconnects: int = 0  # of the connection, when the first of what is open was asked for
    astray: bool = False  # a pull has ended, and nobody said with how much of it left
    over_at: float | None = None  # given up: from then on nothing can come any more
    heard: bool = False  # given up, and the broker is known to have heard of its last pull


class Puller:
    """Delivers messages of one durable consumer, never more than `slots` that are not released.

    Only what comes of pulls that were given up for lost comes on top.
    """

    def __init__(self, broker: Broker, stream: str, durable: str, *, slots: int) -> None:
        self.stream, self.durable, self.slots = stream, durable, slots
        self._broker = broker
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._ready: deque[Delivery] = deque()
        self._held = 0  # taken by the loop and not yet released
        self._lines: list[_Line] = []  # the last one is in use
        self._last_sign = 0.0
        self._resume_at = 0.0
        self._unheard = 0  # pulls in a row that nobody was there to hear
        self._paused = False
        self._stopping = False
        self._stopped = False
        self._wake = asyncio.Event()
        self._arrived = asyncio.Event()
        self._fatal: Refused | None = None

    async def run(self) -> None:
        """Pull until `stop`, then until nothing asked for can still arrive."""
        try:
            self._lines.append(await self._open())
            while True:
                await self._give_up_lost_pulls()
                await self._close_lines()
                if not self._lines:
                    return
                await self._look_for_consumer()
                await self._pull()
                self._wake.clear()
                # Not wait_for: before Python 3.12 it may swallow a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_S):
                        await self._wake.wait()
                if self._fatal:
                    raise self._fatal
        finally:
            self._stopped = True
            self._arrived.set()
            while self._lines:
                await self._close(self._lines[-1])

    def stop(self) -> None:
        """Ask for nothing more; what was asked for still arrives.

        That takes at most `PULL_LIFE_S`, and some times `LATE_S` when the broker falls silent.
        """
        self._stopping = True
        self._wake.set()

    def pause(self, paused: bool) -> None:
        """Stop asking for messages, or go on; what is under way still arrives."""
        self._paused = paused
        self._wake.set()

    async def take(self, count_max: int) -> list[Delivery]:
        """Wait for messages and take what is there; an empty list means: drained, no more comes."""
        while not self._ready:
            if self._stopped:
                return []
            self._arrived.clear()
            await self._arrived.wait()
        batch = [self._ready.popleft() for _ in range(min(count_max, len(self._ready)))]
        self._held += len(batch)
        return batch

    def release(self, count: int) -> None:
        """Give back the slots of messages that were acked, naked or terminated."""
        self._held -= count
        self._wake.set()

    @property
    def waiting(self) -> int:
        """Messages here that nobody has taken yet."""
        return len(self._ready)

    async def send(self, delivery: Delivery, verb: bytes) -> None:
        """Settle one delivery (`+ACK`, `-NAK {…}`, `+TERM why`); a lost one means redelivery."""
        try:
            await self._broker.client.publish(delivery.reply, verb)
        except NOT_NOW:
            structlog.get_logger().debug("Settling was lost", stream=delivery.stream)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Settle all these as dealt with, in one write; a lost one means redelivery."""
        if not deliveries:
            return
        try:
            await write(self._broker.client, answers([each.reply for each in deliveries], ACK))
        except NOT_NOW:
            structlog.get_logger().debug("Settling was lost", stream=self.stream)

    async def nak(self, delivery: Delivery, delay_s: float) -> None:
        """Have it delivered again after `delay_s` seconds."""
        await self.send(delivery, b'-NAK {"delay":%d}' % int(delay_s * NS_PER_S))

    async def _pull(self) -> None:
        if self._stopping or self._paused or time.monotonic() < self._resume_at:
            return
        line = self._lines[-1]
        want = self.slots - self._held - len(self._ready) - line.asked
        idle = line.asked == 0
        # Many tiny pulls cost more than a short wait for a larger one.
        if want <= 0 or not (idle or want >= self.slots // 4) or not self._broker.connected:
            return
        if idle:
            self._last_sign = time.monotonic()
            line.reconnects, line.astray = self._broker.client.stats["reconnects"], False
        line.asked += want
        request = {
            "batch": want,
            "expires": int(PULL_LIFE_S * NS_PER_S),
            "idle_heartbeat": int(HEARTBEAT_S * NS_PER_S),
        }
        try:
            await self._broker.client.publish(
                self._subject, msgspec.json.encode(request), reply=line.inbox
            )
        except NOT_NOW:
            line.asked -= want

    async def _open(self) -> _Line:
        inbox = self._broker.client.new_inbox()
        line = _Line(inbox, None)  # type: ignore[arg-type] # it is there in a moment
        receive = partial(self._receive, line)
        line.subscription = await self._broker.client.listen(inbox, receive)
        return line

    async def _close(self, line: _Line) -> None:
        self._lines.remove(line)
        if not self._broker.client.is_closed:
            await line.subscription.unsubscribe()

    def _silent(self) -> bool:
        return time.monotonic() - self._last_sign > HEARTBEAT_S * HEARTBEATS_MISSED_MAX

    def _seems_lost(self, line: _Line) -> bool:
        reconnected = self._broker.client.stats["reconnects"] != line.reconnects
        return line.asked > 0 and (self._silent() or reconnected or line.astray)

    async def _give_up_lost_pulls(self) -> None:
        """Go on over another line; what may still come of what is lost is waited for beside it."""
        line = self._lines[-1]
        if line.over_at is not None or not self._seems_lost(line):
            return
        line.heard = await self._catch_up()
        # It may have been us who were late; and there is no other line while the broker is away.
        if not self._seems_lost(line) or not (self._stopping or self._broker.connected):
            return
        if not self._stopping:
            if self._silent():
                structlog.get_logger().warning(
                    "No heartbeat, pulling again", stream=self.stream, consumer=self.durable
                )
            self._lines.append(await self._open())
        line.over_at = time.monotonic() + LATE_S

    async def _close_lines(self) -> None:
        """Close the lines over which nothing can come any more."""
        for line in self._lines[: None if self._stopping else -1]:
            if line.asked and (line.over_at is None or time.monotonic() < line.over_at):
                continue
            if line.asked and await self._catch_up() and not line.heard:
                line.heard, line.over_at = True, time.monotonic() + LATE_S
                continue
            await self._close(line)

    async def _catch_up(self) -> bool:
        """Take in what the broker has sent so far, since `_receive` never waits; False: silence."""
        try:
            await self._broker.catch_up()
        except Unavailable:
            return False
        return True

    async def _look_for_consumer(self) -> None:
        if self._unheard < UNHEARD_PULLS_MAX:
            return
        self._unheard = 0
        with contextlib.suppress(Unavailable):
            if not await consumer_exists(self._broker, self.stream, self.durable):
                raise self._gone()

    def _gone(self) -> Refused:
        return Refused(
            f"consumer {self.durable} of stream {self.stream} is gone: run `ironcart provision`"
        )

    def _receive(
        self, line: _Line, subject: str, reply: str, body: bytes, headers: Mapping[str, str]
    ) -> None:
        self._last_sign = time.monotonic()
        if reply.startswith("$JS.ACK."):
            if line.asked:
                line.asked -= 1
            self._ready.append(Delivery.read(subject, reply, body, headers))
            self._arrived.set()
            if line.asked == 0:
                self._wake.set()
            return
        self._note_status(line, headers.get("Status", ""), headers)
        self._wake.set()

    def _note_status(self, line: _Line, status: str, headers: Mapping[str, str]) -> None:
        self._unheard = self._unheard + 1 if status == "503" else 0
        if status == "100":  # heartbeat
            return
        why = headers.get("Description", "").lower()
        given_back = headers.get("Nats-Pending-Messages")
        if status == "409" and ("consumer deleted" in why or "push based" in why):
            self._fatal = self._gone()
        elif given_back is not None:
            line.asked = max(0, line.asked - int(given_back))
        elif status == "503":  # Nobody is there: of earlier pulls nothing will come, either.
            line.asked = 0
            self._resume_at = time.monotonic() + PAUSE_AFTER_REFUSAL_S
        elif status in ("404", "408", "409"):
            line.astray = True
            if status == "409":
                self._resume_at = time.monotonic() + PAUSE_AFTER_REFUSAL_S
        else:
            self._fatal = Refused(f"pulling from {self.stream} is refused: {status} {why}")
