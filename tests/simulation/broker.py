"""A fake JetStream: streams with dedupe and atomic batches, durable pull consumers, bad networks.

It speaks to `SimulatedClient`, which stands where nats-py's client does in the toolkit's `Broker`.
"""

import itertools
import json
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from simulation.world import World

if TYPE_CHECKING:
    from simulation.client import SimulatedClient

NS = 1_000_000_000
INCOMPLETE, DUPLICATE = 10176, 10201


@dataclass(frozen=True, slots=True)
class Stored:
    """One message as a stream keeps it."""

    seq: int
    subject: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def message_id(self) -> str:
        return self.headers.get("Nats-Msg-Id", "")


@dataclass(frozen=True, slots=True)
class Msg:
    """What a client's callback or request gets."""

    subject: str
    data: bytes = b""
    reply: str = ""
    headers: Mapping[str, str] | None = None
    to: str = ""


@dataclass(slots=True)
class Pull:
    """A request for messages that is not used up."""

    client: "SimulatedClient"
    inbox: str
    left: int
    heartbeat_s: float
    last_sign: float
    over: bool = False


@dataclass(slots=True)
class Pending:
    """A message that was delivered and is not settled."""

    client: "SimulatedClient"
    again_at: float
    count: int
    connection: int
    naked: bool = False


class Stream:
    """A log of messages; an id that was seen within the window is not stored again."""

    def __init__(self, world: World, name: str, window_s: float) -> None:
        self._world, self.name, self._window_s = world, name, window_s
        self.log: list[Stored] = []
        self._ids: dict[str, Stored] = {}
        self.consumers: list[Consumer] = []

    def known(self, message_id: str) -> Stored | None:
        """The message that was stored under this id, if that was not too long ago."""
        found = self._ids.get(message_id)
        if found is None or self._world.loop.time() - found.at > self._window_s:
            return None
        return found

    def store(self, subject: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bool]:
        """Keep a message; returns its sequence, and whether it was there already."""
        message_id = headers.get("Nats-Msg-Id", "")
        if message_id and (twin := self.known(message_id)) is not None:
            self._world.note("duplicate refused by its id")
            return twin.seq, True
        if message_id in self._ids:
            self._world.note("duplicate after the dedupe window")
        now = self._world.loop.time()
        stored = Stored(len(self.log) + 1, subject, headers, body, now)
        self.log.append(stored)
        if message_id:
            self._ids[message_id] = stored
        for consumer in self.consumers:
            consumer.deliver()
        return stored.seq, False


class Consumer:
    """A durable pull consumer: what is not acked in time is delivered again."""

    def __init__(self, world: World, stream: Stream, name: str, ack_wait_s: float) -> None:
        self._world, self.stream, self.name = world, stream, name
        self._ack_wait_s = ack_wait_s
        self._next = 1
        self._again: list[int] = []
        self._counts: Counter[int] = Counter()
        self._deliveries = itertools.count(1)
        self.pending: dict[int, Pending] = {}
        self.settled: set[int] = set()
        self._pulls: deque[Pull] = deque()
        stream.consumers.append(self)

    @property
    def open(self) -> int:
        """Messages that are not settled."""
        return len(self.stream.log) - len(self.settled)

    def pull(self, client: "SimulatedClient", inbox: str, request: Mapping[str, Any]) -> None:
        """Take a request of the puller."""
        loop, beat_s = self._world.loop, request["idle_heartbeat"] / NS
        pull = Pull(client, inbox, request["batch"], beat_s, loop.time())
        self._pulls.append(pull)
        loop.outside(request["expires"] / NS, self._expire, pull)
        loop.outside(beat_s, self._beat, pull)
        self.deliver()

    def forget(self, client: "SimulatedClient | None" = None) -> None:
        """Drop the pulls of a client that went away, or all of them."""
        for pull in self._pulls:
            pull.over = pull.over or client is None or pull.client is client
        self._pulls = deque(pull for pull in self._pulls if not pull.over)

    def _expire(self, pull: Pull) -> None:
        if not pull.over:
            pull.over = True
            self._pulls.remove(pull)
            status = {"Status": "408", "Description": "Request Timeout"}
            status |= {"Nats-Pending-Messages": str(pull.left), "Nats-Pending-Bytes": "0"}
            pull.client.receive(Msg(pull.inbox, headers=status, to=pull.inbox))

    def _beat(self, pull: Pull) -> None:
        if not pull.over:
            now = self._world.loop.time()
            if now - pull.last_sign >= pull.heartbeat_s - 0.001:
                pull.last_sign = now
                pull.client.receive(Msg(pull.inbox, headers={"Status": "100"}, to=pull.inbox))
            self._world.loop.outside(pull.heartbeat_s, self._beat, pull)

    def deliver(self) -> None:
        """Send what is there to whoever asked."""
        while self._pulls and (seq := self._take()) is not None:
            pull = self._pulls[0]
            self._send(pull, seq)
            pull.left -= 1
            if not pull.left:
                pull.over = True
                self._pulls.popleft()

    def _take(self) -> int | None:
        while self._again:
            seq = self._again.pop(self._world.rng.randrange(len(self._again)))
            if seq not in self.settled:
                return seq
        if self._next <= len(self.stream.log):
            self._next += 1
            return self._next - 1
        return None

    def _send(self, pull: Pull, seq: int) -> None:
        now, stored = self._world.loop.time(), self.stream.log[seq - 1]
        self._counts[seq] += 1
        if self._counts[seq] > 1:
            self._world.note("redelivery")
        pull.last_sign = now
        connection = pull.client.stats["reconnects"]
        pending = Pending(pull.client, now + self._ack_wait_s, self._counts[seq], connection)
        self.pending[seq] = pending
        self._world.loop.outside(self._ack_wait_s, self._look, seq, pending)
        at = f"{pending.count}.{seq}.{next(self._deliveries)}.{int(stored.at * NS)}.0"
        reply = f"$JS.ACK.{self.stream.name}.{self.name}.{at}"
        pull.client.receive(Msg(stored.subject, stored.body, reply, stored.headers, pull.inbox))

    def _look(self, seq: int, pending: Pending) -> None:
        if self.pending.get(seq) is pending and self._world.loop.time() >= pending.again_at - 1e-6:
            del self.pending[seq]
            self._again.append(seq)
            self.deliver()

    def settle(self, seq: int, verb: bytes) -> None:
        """Take an ack, a nak or a term."""
        if verb.startswith(b"-NAK"):
            pending = self.pending.get(seq)
            if pending is not None:
                self._world.note("nak")
                delay_s = json.loads(verb[4:])["delay"] / NS
                pending.naked = True
                pending.again_at = self._world.loop.time() + delay_s
                self._world.loop.outside(delay_s, self._look, seq, pending)
            return
        if verb.startswith(b"+TERM"):
            self._world.note("term")
        self.pending.pop(seq, None)
        self.settled.add(seq)

    def unsettle(self, seq: int) -> None:
        """Forget that a message was settled, as a broker may that did not sync it."""
        self._world.note("ack that the broker forgot")
        self.settled.discard(seq)
        self._again.append(seq)
        self.deliver()


@dataclass
class JetStream:
    """The server."""

    world: World
    dedupe_s: float
    ack_wait_s: float
    streams: dict[str, Stream] = field(default_factory=dict)
    subjects: dict[str, Stream] = field(default_factory=dict)
    consumers: dict[tuple[str, str], Consumer] = field(default_factory=dict)
    clients: list["SimulatedClient"] = field(default_factory=list)
    up: bool = True
    _batches: dict[str, list[Msg]] = field(default_factory=dict)

    def stream(self, name: str, *subjects: str) -> Stream:
        """Make a stream."""
        self.streams[name] = made = Stream(self.world, name, self.dedupe_s)
        self.subjects |= dict.fromkeys(subjects, made)
        return made

    def consumer(self, stream: str, name: str) -> Consumer:
        """Make a durable consumer."""
        made = Consumer(self.world, self.streams[stream], name, self.ack_wait_s)
        self.consumers[stream, name] = made
        return made

    def stop(self) -> None:
        """Go down: every connection breaks, batches that were begun are gone."""
        self.world.note("broker outage")
        self.up = False
        for client in self.clients:
            client.disconnect()
        self._batches.clear()
        for consumer in self.consumers.values():
            consumer.forget()

    def start(self) -> None:
        """Come back, with everything that was stored."""
        self.up = True

    def take(self, client: "SimulatedClient", message: Msg) -> None:
        """Deal with one message that has arrived."""
        subject = message.subject
        if subject.startswith("$JS.ACK."):
            _, _, stream, name, _, seq, *_ = subject.split(".")
            self.consumers[stream, name].settle(int(seq), message.data)
        elif subject == "PING":
            client.receive(Msg(message.reply, to=message.reply))
        elif subject.startswith("$JS.API.CONSUMER.MSG.NEXT."):
            _, stream, name = subject.rsplit(".", 2)
            request = json.loads(message.data)
            self.consumers[stream, name].pull(client, message.reply, request)
        elif subject.startswith("$JS.API."):
            self._answer(client, message, self._api(subject))
        else:
            self._publish(client, message)

    def _api(self, subject: str) -> dict[str, Any]:
        words = subject.split(".")
        assert words[2:4] == ["CONSUMER", "INFO"], f"the fake broker knows no {subject}"
        return {"config": {"name": words[5]}, "stream_name": words[4]}

    def _publish(self, client: "SimulatedClient", message: Msg) -> None:
        headers = message.headers or {}
        stream = self.subjects.get(message.subject) or self.subjects[message.subject.split(".")[0]]
        batch_id = headers.get("Nats-Batch-Id")
        if batch_id is None:
            seq, twin = stream.store(message.subject, headers, message.data)
            self.world.note("single publish")
            self._answer(client, message, {"stream": stream.name, "seq": seq, "duplicate": twin})
            return
        batch = self._batches.setdefault(batch_id, [])
        batch.append(message)
        if "Nats-Batch-Commit" in headers:
            del self._batches[batch_id]
            self._answer(client, message, self._commit(stream, batch))

    def _commit(self, stream: Stream, batch: list[Msg]) -> dict[str, Any]:
        numbers = [int((each.headers or {})["Nats-Batch-Sequence"]) for each in batch]
        if numbers != list(range(1, len(batch) + 1)):
            self.world.note("batch that arrived with a gap")
            return _error(INCOMPLETE, "batch publish is incomplete")
        ids = [(each.headers or {}).get("Nats-Msg-Id", "") for each in batch]
        if any(each and stream.known(each) for each in ids) or len(set(ids)) < len(ids):
            self.world.note("batch refused for a duplicate")
            return _error(DUPLICATE, "batch publish contains duplicate message id")
        self.world.note("atomic publish")
        for each in batch:
            seq, _ = stream.store(each.subject, each.headers or {}, each.data)
        return {"stream": stream.name, "seq": seq, "batch": "b", "count": len(batch)}

    def _answer(self, client: "SimulatedClient", message: Msg, found: dict[str, Any]) -> None:
        if message.reply:
            if self.world.happens(self.world.weather.lose_answer):
                self.world.note("answer of the broker that was lost")
                return
            answer = Msg(message.reply, json.dumps(found).encode(), to=message.reply)
            client.receive(answer)


def _error(number: int, text: str) -> dict[str, Any]:
    return {"error": {"code": 400, "err_code": number, "description": text}}
