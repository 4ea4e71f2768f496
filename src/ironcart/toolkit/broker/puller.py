"""A continuous pull consumer that asks only for free slots.

A message therefore never waits in a client's buffer while its ack_wait runs. Pull requests do not
survive a reconnect, and a silent one is given up after a few missed heartbeats.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import structlog
from nats.aio.msg import Msg

from ironcart.toolkit.broker.connection import NOT_NOW, Broker
from ironcart.toolkit.broker.provisioning import consumer_exists
from ironcart.toolkit.outcomes import Refused, Unavailable
from ironcart.toolkit.topology import NS_PER_S

PULL_LIFE_S = 2.0
HEARTBEAT_S = 0.5
HEARTBEATS_MISSED_MAX = 4
PAUSE_AFTER_REFUSAL_S = 0.25
# Nobody answers pulls while a stream has no leader; for longer than this the consumer may be gone.
UNHEARD_PULLS_MAX = 8
ACK = b"+ACK"


@dataclass(slots=True)
class Delivery:
    """One message as it was delivered, before anybody has looked into it."""

    stream: str
    stream_seq: int
    subject: str
    body: bytes
    headers: Mapping[str, str]
    delivered: int
    stored_at: float
    reply: str
    taken_at: float = field(default_factory=time.monotonic)

    @classmethod
    def from_message(cls, message: Msg) -> "Delivery":
        """Read the reply subject: `$JS.ACK.[domain.account.]stream.consumer.n.seq.cseq.at.left`."""
        tokens = message.reply.split(".")
        at = 2 if len(tokens) == 9 else 4
        stream, _, delivered, stream_seq, _, stored_ns = tokens[at : at + 6]
        return cls(
            stream,
            int(stream_seq),
            message.subject,
            message.data,
            message.headers or {},
            int(delivered),
            int(stored_ns) / NS_PER_S,
            message.reply,
        )


class Puller:
    """Delivers messages of one durable consumer, never more than `slots` that are not released."""

    def __init__(self, broker: Broker, stream: str, durable: str, *, slots: int) -> None:
        self.stream, self.durable, self.slots = stream, durable, slots
        self._broker = broker
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._inbox = broker.client.new_inbox()
        self._ready: deque[Delivery] = deque()
        self._held = 0  # taken by the loop and not yet released
        self._asked = 0  # asked for, neither delivered nor given back
        self._last_sign = 0.0
        self._resume_at = 0.0
        self._unheard = 0  # pulls in a row that nobody was there to hear
        self._reconnects = -1
        self._paused = False
        self._stopping = False
        self._stopped = False
        self._wake = asyncio.Event()
        self._arrived = asyncio.Event()
        self._fatal: Refused | None = None

    async def run(self) -> None:
        """Pull until `stop`, then until nothing asked for can still arrive."""
        client = self._broker.client
        subscription = await client.subscribe(self._inbox, cb=self._receive)
        try:
            while not (self._stopping and self._asked == 0):
                self._forget_lost_pulls()
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
            if not client.is_closed:
                await subscription.unsubscribe()

    def stop(self) -> None:
        """Ask for nothing more; what was asked for still arrives, for at most `PULL_LIFE_S`."""
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

    async def nak(self, delivery: Delivery, delay_s: float) -> None:
        """Have it delivered again after `delay_s` seconds."""
        await self.send(delivery, b'-NAK {"delay":%d}' % int(delay_s * NS_PER_S))

    async def _pull(self) -> None:
        want = self.slots - self._held - len(self._ready) - self._asked
        idle = self._asked == 0
        if self._stopping or self._paused or time.monotonic() < self._resume_at:
            return
        # Many tiny pulls cost more than a short wait for a larger one.
        if want <= 0 or not (idle or want >= self.slots // 4) or not self._broker.connected:
            return
        if idle:
            self._last_sign = time.monotonic()
        self._asked += want
        request = {
            "batch": want,
            "expires": int(PULL_LIFE_S * NS_PER_S),
            "idle_heartbeat": int(HEARTBEAT_S * NS_PER_S),
        }
        try:
            await self._broker.client.publish(
                self._subject, msgspec.json.encode(request), reply=self._inbox
            )
        except NOT_NOW:
            self._asked = 0

    def _forget_lost_pulls(self) -> None:
        reconnects = self._broker.client.stats["reconnects"]
        if reconnects != self._reconnects:
            self._reconnects, self._asked = reconnects, 0
        silent_s = time.monotonic() - self._last_sign
        if self._asked and silent_s > HEARTBEAT_S * HEARTBEATS_MISSED_MAX:
            if self._broker.connected and not self._stopping:
                structlog.get_logger().warning(
                    "No heartbeat, pulling again", stream=self.stream, consumer=self.durable
                )
            self._asked = 0

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

    async def _receive(self, message: Msg) -> None:
        self._last_sign = time.monotonic()
        if message.reply.startswith("$JS.ACK."):
            self._asked = max(0, self._asked - 1)
            self._ready.append(Delivery.from_message(message))
            self._arrived.set()
            if self._asked == 0:
                self._wake.set()
            return
        headers = message.headers or {}
        self._note_status(headers.get("Status", ""), headers)
        self._wake.set()

    def _note_status(self, status: str, headers: Mapping[str, str]) -> None:
        self._unheard = self._unheard + 1 if status == "503" else 0
        if status == "100":  # heartbeat
            return
        why = headers.get("Description", "").lower()
        given_back = headers.get("Nats-Pending-Messages")
        if status == "409" and ("consumer deleted" in why or "push based" in why):
            self._fatal = self._gone()
        elif given_back is not None:
            self._asked = max(0, self._asked - int(given_back))
        else:
            self._asked = 0
            if status in ("409", "503"):
                self._resume_at = time.monotonic() + PAUSE_AFTER_REFUSAL_S
            elif status not in ("404", "408"):
                self._fatal = Refused(f"pulling from {self.stream} is refused: {status} {why}")
