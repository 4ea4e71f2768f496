"""Outbox: publishes what was committed, at once by the fast path and at last by the sweeper.

Nothing depends on the fast path: it may fail, or the process may die. The sweeper publishes what
has been unpublished for more than `SWEEP_AFTER_S`, and a repeat carries the same ids.
"""

import asyncio
import re
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import structlog

from ironcart.toolkit import telemetry
from ironcart.toolkit.broker import Broker, BrokerError, Outgoing, publish
from ironcart.toolkit.broker.publisher import BATCH_MESSAGES_MAX
from ironcart.toolkit.collector import Pace
from ironcart.toolkit.database import Database
from ironcart.toolkit.history.events import Commit
from ironcart.toolkit.outcomes import Unavailable

SWEEP_AFTER_S = 2.0
SWEEP_EVERY_S = 0.5
SWEEP_BATCHES_MAX = 500
SWEEP_EVENTS_MAX = 5_000
# Longer than a round takes, so that two replicas do not publish the same; given back on failure.
SWEEP_CLAIM_S = 30.0
FAST_PATH_COMMITS_MAX = 2_000
LINGER_S_MAX = 0.05
CHUNK_BYTES_MAX = 4 * 1024 * 1024
_BETWEEN_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")


class Outbox:
    """One for each service: everything it emits goes to one stream, in order of commit.

    Only what the command line records about dead letters goes to theirs, by the sweeper.
    """

    def __init__(self, broker: Broker, database: Database) -> None:
        self._broker, self._database = broker, database
        self._waiting: deque[tuple[Commit, asyncio.Future[None]]] = deque()
        self._in_hand: set[int] = set()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def publish(self, commit: Commit | None) -> None:
        """Wait until a commit has travelled, or until that is left to the sweeper."""
        if commit is not None and (sent := self.hand_over(commit)) is not None:
            await sent

    def hand_over(self, commit: Commit) -> asyncio.Future[None] | None:
        """Log what has become true and publish it soon; None when the sweeper will have to."""
        _log_facts(commit)
        if not self._broker.connected or len(self._waiting) >= FAST_PATH_COMMITS_MAX:
            return None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((commit, future))
        self._in_hand.add(commit.batch_no)
        self._idle.clear()
        self._arrived.set()
        return future

    async def flushed(self) -> None:
        """Wait until the fast path has nothing left to do."""
        await self._idle.wait()

    async def run_fast_path(self) -> None:
        """Publish what is handed over, merging commits, until cancelled."""
        pace = Pace(LINGER_S_MAX)
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            if pace.wait_s and len(self._waiting) < FAST_PATH_COMMITS_MAX:
                await asyncio.sleep(pace.wait_s)
            started = time.monotonic()
            group, count = [], 0
            while self._waiting and count < BATCH_MESSAGES_MAX:
                group.append(self._waiting.popleft())
                count += len(group[-1][0].messages)
            try:
                await self._publish([commit for commit, _ in group])
            except Unavailable as error:
                structlog.get_logger().warning("Left to the sweeper", error=str(error))
            except BrokerError as error:
                structlog.get_logger().error("The stream refuses our events", error=str(error))
            finally:
                for commit, future in group:
                    self._in_hand.discard(commit.batch_no)
                    if not future.done():
                        future.set_result(None)
                if not self._in_hand:
                    self._idle.set()
            pace.note(count, time.monotonic() - started)

    async def run_sweeper(self) -> None:
        """Publish what was left behind, by this process or another, until cancelled."""
        while True:
            try:
                more = await self.sweep()
                await self._measure()
            except (Unavailable, BrokerError) as error:
                structlog.get_logger().warning("Sweeping failed", error=str(error))
                more = False
            if not more:
                await asyncio.sleep(SWEEP_EVERY_S)

    async def sweep(self) -> bool:
        """Publish one round of what is old; says whether there may be more."""
        if not self._broker.connected:
            return False
        # What the fast path still has in hand is not claimed: it may soon be left to the sweeper.
        in_hand = list(self._in_hand)
        rows = await self._database.fetch(
            _CLAIM, SWEEP_AFTER_S, SWEEP_CLAIM_S, SWEEP_BATCHES_MAX, SWEEP_EVENTS_MAX, in_hand
        )
        left = sorted(row["batch_no"] for row in rows)
        try:
            for numbers in _rounds(left, {row["batch_no"]: row["n"] for row in rows}):
                await self._publish_apart(await self._read(numbers))
                left = left[len(numbers) :]
        except Unavailable:
            await self._database.execute(_GIVE_BACK, left)
            raise
        return bool(rows)

    async def _read(self, numbers: Sequence[int]) -> list[Commit]:
        messages: dict[int, list[Outgoing]] = {number: [] for number in numbers}
        for row in await self._database.fetch(_EVENTS, numbers):
            messages[row["batch_no"]].append(_outgoing(row))
        structlog.get_logger().info("Sweeping", batches=len(numbers))
        return [Commit(number, found) for number, found in messages.items()]

    async def _publish_apart(self, commits: Sequence[Commit]) -> None:
        """Publish together, or one by one when the stream refuses: no commit holds up the rest."""
        try:
            await self._publish(commits)
        except BrokerError as error:
            if len(commits) == 1:
                structlog.get_logger().error(
                    "The stream refuses our events", error=str(error), batch_no=commits[0].batch_no
                )
                return
            for commit in commits:
                await self._publish_apart([commit])

    async def _publish(self, commits: Sequence[Commit]) -> None:
        """Publish in chunks, and mark what the stream has taken."""
        messages = [message for commit in commits for message in commit.messages]
        seqs: list[int] = []
        for chunk in _chunks(messages):
            seqs += await publish(self._broker, chunk)
        at = 0
        marks: list[tuple[int, int]] = []
        scattered: list[tuple[int, int, int]] = []
        for commit in commits:
            taken = seqs[at : at + len(commit.messages)]
            at += len(taken)
            marks.append((commit.batch_no, taken[0]))
            if taken[-1] - taken[0] != len(taken) - 1 or taken != sorted(taken):
                scattered += [(commit.batch_no, pos, seq) for pos, seq in enumerate(taken)]
        for subject, count in Tally([message.subject for message in messages]).items():
            telemetry.published.labels(subject).inc(count)
        await self._mark(marks, scattered)

    async def _mark(
        self, marks: Sequence[tuple[int, int]], scattered: Sequence[tuple[int, int, int]]
    ) -> None:
        if scattered:
            await self._database.execute(
                "UPDATE events e SET stream_seq = s.seq FROM unnest($1::bigint[], $2::int[],"
                " $3::bigint[]) AS s(batch_no, pos, seq)"
                " WHERE e.batch_no = s.batch_no AND e.batch_pos = s.pos",
                *(list(column) for column in zip(*scattered, strict=True)),
            )
        await self._database.execute(
            "UPDATE batches b SET first_seq = m.seq FROM unnest($1::bigint[], $2::bigint[])"
            " AS m(batch_no, seq) WHERE b.batch_no = m.batch_no",
            *(list(column) for column in zip(*marks, strict=True)),
        )

    async def _measure(self) -> None:
        row = await self._database.fetchrow(
            "SELECT count(*) AS waiting,"
            " coalesce(extract(epoch FROM now() - min(recorded_at)), 0)::float8 AS age_s"
            " FROM batches WHERE first_seq IS NULL"
        )
        assert row is not None
        telemetry.outbox_waiting.set(row["waiting"])
        telemetry.outbox_age.set(row["age_s"])


# Claiming is a lease: two replicas do not sweep the same batch at once, and no transaction stays
# open while the broker is being waited for.
_CLAIM = """
WITH old AS (
  SELECT batch_no, sum(n) OVER (ORDER BY batch_no) AS upto FROM (
    SELECT batch_no, n FROM batches
    WHERE first_seq IS NULL AND recorded_at < now() - make_interval(secs => $1)
      AND (claimed_at IS NULL OR claimed_at < now() - make_interval(secs => $2))
      AND batch_no <> ALL($5::bigint[])
    ORDER BY batch_no LIMIT $3 FOR UPDATE SKIP LOCKED) AS oldest)
UPDATE batches b SET claimed_at = now() FROM old
WHERE b.batch_no = old.batch_no AND (old.upto <= $4 OR old.upto = b.n)
RETURNING b.batch_no, b.n
"""
_GIVE_BACK = "UPDATE batches SET claimed_at = NULL WHERE batch_no = ANY($1::bigint[])"
_EVENTS = """
SELECT batch_no, id, subject, traceparent, body FROM events
WHERE batch_no = ANY($1::bigint[]) ORDER BY batch_no, batch_pos
"""


def _log_facts(commit: Commit) -> None:
    """A line for each event, all of them in one write."""
    lines = [
        {
            "msg": _words(event.type),
            "order_id": event.aggregate_id,
            "event_id": event.id,
            "event_type": event.type,
            "trace_id": event.context.trace_id,
            "span_id": event.context.span_id,
        }
        for event in commit.events
    ]
    if lines:
        structlog.get_logger().info("Committed", together=lines)


@cache
def _words(kind: str) -> str:
    """`OrderCreated` as people write it: Order created."""
    return _BETWEEN_WORDS.sub(" ", kind).capitalize()


def _outgoing(row: Any) -> Outgoing:
    traceparent, _, state = str(row["traceparent"]).partition(" ")
    headers = {"traceparent": traceparent} | ({"tracestate": state} if state else {})
    return Outgoing(str(row["id"]), row["subject"], row["body"], headers)


def _rounds(numbers: Sequence[int], sizes: Mapping[int, int]) -> list[list[int]]:
    """Group batches so that each group is one atomic publish, and is marked before the next."""
    rounds: list[list[int]] = []
    room = 0
    for number in numbers:
        if not rounds or sizes[number] > room:
            rounds.append([])
            room = BATCH_MESSAGES_MAX
        rounds[-1].append(number)
        room -= sizes[number]
    return rounds


def _chunks(messages: Sequence[Outgoing]) -> list[list[Outgoing]]:
    chunks: list[list[Outgoing]] = [[]]
    size = 0
    for message in messages:
        size += len(message.body)
        full = len(chunks[-1]) == BATCH_MESSAGES_MAX or size > CHUNK_BYTES_MAX
        # An atomic batch goes to one stream; what was done about dead letters lies with those.
        if chunks[-1] and (full or _family(chunks[-1][-1]) != _family(message)):
            chunks.append([])
            size = len(message.body)
        chunks[-1].append(message)
    return chunks


def _family(message: Outgoing) -> str:
    return message.subject.partition(".")[0]
