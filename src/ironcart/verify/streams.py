"""Reading the broker from outside: whole streams through a consumer of our own, and the lag."""

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from ironcart.verify.facts import (
    DEAD_LETTERS,
    STREAMS,
    CannotReadError,
    Consumer,
    DeadLetter,
    StreamFacts,
)
from ironcart.verify.wire import read_event

CONNECT_TIMEOUT_S = 5
RECONNECTS_MAX = 3
REQUEST_TIMEOUT_S = 10.0
PULL_MESSAGES = 2_000
PULLS_AT_ONCE = 2
PULL_EXPIRES_S = 5
# At the end of a stream: how long a copy of it may lag behind the one that told us its last.
TAIL_PULL_EXPIRES_S = 1
STALL_S = 20.0
# This many pulls in a row without a message: the broker has no more to give.
EMPTY_PULLS_MAX = 2 * PULLS_AT_ONCE
CONSUMER_LIFE_S = 60.0
NS_PER_S = 1_000_000_000
SEQ_TOKEN = -4
MESSAGE_ID = "Nats-Msg-Id"
LETTERS = "dlq."
REPAIRED = frozenset({"edited", "replayed", "discarded"})
# Headers of a dead letter: whose message it is, and which.
SERVICE, STREAM, SEQUENCE = "Ironcart-Service", "Ironcart-Stream", "Ironcart-Stream-Sequence"

Take = Callable[[int, Msg], None]


class Reader(Client):
    """Reads on, whatever was written by whoever may publish; nats-py would stop for good."""

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except (IndexError, UnicodeDecodeError):
            return None

    def _build_message(self, sid: int, subject: bytes, *rest: Any) -> Msg:
        readable = subject.decode(errors="replace").encode()
        message: Msg = super()._build_message(sid, readable, *rest)
        return message


@asynccontextmanager
async def broker(urls: list[str], tls: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    """Connect for the length of a `with`; raises `CannotReadError` when nobody answers."""
    where = ", ".join(url.rpartition("@")[2] for url in urls)

    async def ignore(_: Exception) -> None:
        """Keep nats-py from logging what is raised to us anyway."""

    # nats-py answers the end of a stream as if there were no TLS, and is told so to no effect.
    logging.getLogger("asyncio").addFilter(lambda record: "eof_received" not in str(record.msg))
    client = Reader()
    try:
        await client.connect(
            urls,
            connect_timeout=CONNECT_TIMEOUT_S,
            max_reconnect_attempts=RECONNECTS_MAX,
            error_cb=ignore,
            name="ironcart verify",
            tls=tls,
            tls_handshake_first=tls is not None,
        )
    except (OSError, NatsError, TimeoutError) as error:
        raise CannotReadError(f"the broker at {where}: {error}") from None
    try:
        yield client
    except NatsError as error:
        raise CannotReadError(f"the broker at {where}: {error!r}") from error
    finally:
        await client.close()


async def read_streams(client: Client) -> tuple[dict[str, StreamFacts], list[DeadLetter]]:
    """Read every stream from its first message to what was its last when we began."""
    streams = {}
    letters: list[DeadLetter] = []
    seen: set[str] = set()
    for name in STREAMS:
        facts = await _describe(client.jetstream(timeout=REQUEST_TIMEOUT_S), name)

        def take(seq: int, message: Msg, facts: StreamFacts = facts) -> None:
            event = read_event(facts.name, seq, message.subject, message.data)
            facts.events.append(event)
            if facts.name == DEAD_LETTERS and is_letter(message.subject):
                letters.append(_letter(seq, message, event.id, seen))

        await _read(client, facts, take)
        streams[name] = facts
    return streams, letters


async def read_lag(client: Client) -> tuple[list[Consumer], dict[str, int]]:
    """Return every durable consumer with its lag, and the last sequence of every stream."""
    jetstream = client.jetstream(timeout=REQUEST_TIMEOUT_S)
    consumers: list[Consumer] = []
    last_seqs = {}
    for name in STREAMS:
        last_seqs[name] = (await _describe(jetstream, name)).last_seq
        consumers += [
            Consumer(
                stream=name,
                name=info.config.durable_name,
                pending=info.num_pending or 0,
                ack_pending=info.num_ack_pending or 0,
                max_deliver=info.config.max_deliver or 0,
                redelivered=info.num_redelivered or 0,
            )
            for info in await jetstream.consumers_info(name)
            if info.config.durable_name
        ]
    return consumers, last_seqs


async def _describe(jetstream: JetStreamContext, name: str) -> StreamFacts:
    try:
        state = (await jetstream.stream_info(name)).state
    except NotFoundError:
        raise CannotReadError(
            f"the broker has no stream {name}: run `ironcart provision`"
        ) from None
    return StreamFacts(name, state.first_seq, state.last_seq, state.messages)


def is_letter(subject: str) -> bool:
    """Whether this is where messages are set aside; the rest says what was done about one."""
    return subject.startswith(LETTERS) and subject.rpartition(".")[2] not in REPAIRED


def _reason(message: Msg) -> str:
    headers = message.headers or {}
    return next((value for name, value in headers.items() if name.lower().endswith("reason")), "")


def _letter(seq: int, message: Msg, event_id: bytes, seen: set[str]) -> DeadLetter:
    headers = message.headers or {}
    number = headers.get(SEQUENCE, "")
    letter = DeadLetter(
        subject=message.subject,
        reason=_reason(message),
        event_id=event_id,
        seq=seq,
        origin=(
            headers.get(SERVICE, ""),
            headers.get(STREAM, ""),
            int(number) if number.isdecimal() else 0,
        ),
    )
    # Published again because its acknowledgement was lost: still one dead letter.
    message_id = headers.get(MESSAGE_ID, f"at {seq}")
    letter.repeated = message_id in seen
    seen.add(message_id)
    return letter


async def _read(client: Client, facts: StreamFacts, take: Take) -> None:
    """Hand every message up to `facts.last_seq` to `take`, in stream order.

    Messages the broker skips are not waited for: the checks find the hole they leave.
    """
    if not facts.messages:
        return
    jetstream = client.jetstream(timeout=REQUEST_TIMEOUT_S)
    info = await jetstream.add_consumer(
        facts.name,
        ConsumerConfig(
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.ALL,
            inactive_threshold=CONSUMER_LIFE_S,
            mem_storage=True,
            num_replicas=1,
        ),
    )
    reading = _Reading(facts.last_seq, take)
    inbox = client.new_inbox()
    subscription = await client.subscribe(
        inbox, cb=reading.on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
    )
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{facts.name}.{info.name}"
    try:
        while not reading.done:
            while reading.asked <= PULL_MESSAGES * (PULLS_AT_ONCE - 1):
                reading.asked += PULL_MESSAGES
                await client.publish(subject, _pull(tail=reading.at_tail), reply=inbox)
            reading.wake.clear()
            try:
                await asyncio.wait_for(reading.wake.wait(), STALL_S)
            except TimeoutError:
                raise CannotReadError(
                    f"stream {facts.name} stands still at {reading.seq} of {facts.last_seq}"
                ) from None
    finally:
        await subscription.unsubscribe()
        await jetstream.delete_consumer(facts.name, info.name)


def _pull(*, tail: bool) -> bytes:
    expires_s = TAIL_PULL_EXPIRES_S if tail else PULL_EXPIRES_S
    return json.dumps({"batch": PULL_MESSAGES, "expires": expires_s * NS_PER_S}).encode()


class _Reading:
    """One pass over a stream: counts what is still asked for, and knows when the end is reached."""

    def __init__(self, last_seq: int, take: Take) -> None:
        self.last_seq = last_seq
        self.take = take
        self.asked = 0
        self.empty_pulls = 0
        self.seq = 0
        self.done = False
        self.at_tail = False
        self.wake = asyncio.Event()

    async def on_message(self, message: Msg) -> None:
        """Take one message, or learn from a status that a pull has ended."""
        if not message.reply.startswith("$JS.ACK"):
            # A pull that ended early says how much of it was not delivered.
            left = (message.headers or {}).get("Nats-Pending-Messages")
            self.asked = max(0, self.asked - int(left)) if left else 0
            self.empty_pulls += 1
            self.done = self.done or self.empty_pulls >= EMPTY_PULLS_MAX
            self.wake.set()
            return
        tokens = message.reply.split(".")
        seq = int(tokens[SEQ_TOKEN])
        self.asked -= 1
        self.empty_pulls = 0
        if not self.done and seq <= self.last_seq:
            self.seq = seq
            self.take(seq, message)
        self.done = self.done or seq >= self.last_seq
        # The last token is how many messages follow here: none, and we wait a little for the rest.
        self.at_tail = tokens[-1] == "0"
        if self.done or self.asked <= PULL_MESSAGES * (PULLS_AT_ONCE - 1):
            self.wake.set()
