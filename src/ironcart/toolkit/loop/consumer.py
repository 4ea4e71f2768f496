"""The consumer: takes batches, has them dealt with, publishes, then settles with the broker."""

import asyncio
import time
from collections import Counter as Tally
from collections.abc import Sequence

import structlog

from ironcart.toolkit import telemetry
from ironcart.toolkit.broker import BrokerError, Delivery, Puller
from ironcart.toolkit.collector import Pace
from ironcart.toolkit.deadletters import park
from ironcart.toolkit.history import Commit
from ironcart.toolkit.loop import parking
from ironcart.toolkit.loop.attempt import Attempt
from ironcart.toolkit.loop.parts import parts
from ironcart.toolkit.loop.releases import letter_of
from ironcart.toolkit.loop.subscriptions import Chassis, RawSubscription, Subscription
from ironcart.toolkit.loop.verdicts import Ack, Nak, Term, Verdict
from ironcart.toolkit.outcomes import LostRace, Refused, Unavailable

BATCH_MESSAGES_MAX = 500
MESSAGES_IN_HAND_MAX = 2_000
SETTLING_BATCHES_MAX = 2
LINGER_S_MAX = 0.2
# Nobody waits for what is only recorded: it is taken in larger batches, with longer rests.
RAW_LINGER_S_MAX = 0.5
RAW_RESTS = 20.0
OUTAGE_CHECK_S = 0.5
RACES_MAX = 10


class Consumer:
    """Runs one subscription until `stop`, then finishes what is in hand."""

    def __init__(self, chassis: Chassis, subscription: Subscription | RawSubscription) -> None:
        self._chassis, self._subscription = chassis, subscription
        durable = subscription.durable
        self.puller = Puller(
            chassis.broker, durable.stream, durable.name, slots=MESSAGES_IN_HAND_MAX
        )
        self.label = f"{durable.name}/{durable.stream}"
        self._stopping = asyncio.Event()
        raw = isinstance(subscription, RawSubscription)
        self._pace = Pace(RAW_LINGER_S_MAX, rests=RAW_RESTS) if raw else Pace(LINGER_S_MAX)
        self._oldest_stored_at: float | None = None

    def stop(self) -> None:
        """Pull nothing more; `run` returns when everything in hand is settled."""
        self._stopping.set()
        self.puller.stop()

    def measure_age(self) -> None:
        """Export the age of the oldest message in hand."""
        at = self._oldest_stored_at
        durable = self._subscription.durable
        age_s = 0.0
        if at is not None:  # Between two machines, which share no other clock.
            age_s = max(0.0, time.time() - at)  # nosemgrep: no-duration-by-the-wall-clock
        telemetry.oldest.labels(durable.name, durable.stream).set(age_s)

    async def run(self) -> None:
        """Deal with batches until stopped; raises only `Refused` and bugs of the loop itself."""
        settling = asyncio.Semaphore(SETTLING_BATCHES_MAX)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.puller.run())
            while batch := await self._take():
                verdicts, commit = await self._until_dealt_with(batch)
                if verdicts is None:  # Stopped during an outage: all of it is for the next one.
                    for delivery in batch:
                        await self.puller.nak(delivery, 0.0)
                    self.puller.release(len(batch))
                    continue
                await settling.acquire()
                task = group.create_task(self._settle(verdicts, commit))
                task.add_done_callback(lambda _: settling.release())

    async def _take(self) -> list[Delivery]:
        self._oldest_stored_at = None
        batch = await self.puller.take(BATCH_MESSAGES_MAX)
        wait_s = self._pace.wait_s
        if wait_s and batch and len(batch) < BATCH_MESSAGES_MAX and not self._stopping.is_set():
            await asyncio.sleep(wait_s)
            if self.puller.waiting:
                batch += await self.puller.take(BATCH_MESSAGES_MAX - len(batch))
        self._oldest_stored_at = batch[0].stored_at if batch else None
        return batch

    async def _until_dealt_with(
        self, batch: Sequence[Delivery]
    ) -> tuple[list[Verdict] | None, Commit | None]:
        """Deal with a batch, however long the database is away; None when stopped meanwhile."""
        log = structlog.get_logger()
        races = 0
        started = time.monotonic()
        while True:
            try:
                dealt = await self._deal_with(batch)
            except LostRace as error:
                races += 1
                log.info("Run again", error=str(error), consumer=self.label)
                await asyncio.sleep(self._chassis.backoff.delay_s(min(races, RACES_MAX)) / 10)
            except Unavailable as error:
                if self._stopping.is_set():
                    return None, None
                log.warning("Waiting for the outage to end", error=str(error), consumer=self.label)
                await self._wait_out()
            except Refused:  # Waiting will not mend it: the process ends and says so.
                raise
            except Exception as error:
                log.error("A raw handler failed", exc_info=error, consumer=self.label)
                if self._stopping.is_set():
                    return None, None
                await asyncio.sleep(OUTAGE_CHECK_S)
            else:
                took_s = time.monotonic() - started
                self._pace.note(len(batch), took_s)
                telemetry.batch_size.labels(self.label).observe(len(batch))
                telemetry.handling.labels(self.label).observe(took_s)
                return dealt

    async def _wait_out(self) -> None:
        self.puller.pause(True)
        while not self._stopping.is_set():
            await asyncio.sleep(OUTAGE_CHECK_S)
            if await self._chassis.database.healthy():
                break
        self.puller.pause(False)

    async def _deal_with(self, batch: Sequence[Delivery]) -> tuple[list[Verdict], Commit | None]:
        if isinstance(self._subscription, RawSubscription):
            async with self._chassis.database.transaction() as connection:
                await self._subscription.handle(batch, connection)
            return [Ack(delivery) for delivery in batch], None
        subscription, verdicts = self._subscription, list[Verdict]()
        commit: Commit | None = None
        attempt = Attempt(self._chassis, subscription, self.label)
        for part in parts(batch, subscription):
            if commit is not None:  # The last one is settled with the batch.
                await self._chassis.outbox.publish(commit)
                commit = None
            verdicts += [Ack(delivery, "own") for delivery in part.own]
            if part.terms:
                async with self._chassis.database.transaction() as connection:
                    new = await parking.set_aside(connection, part.terms)
                for term in part.terms:
                    known = term.delivery.stream_seq not in new
                    verdicts.append(Ack(term.delivery, "duplicate") if known else term)
            if part.messages:
                dealt, commit = await attempt.split(part.messages)
                verdicts += dealt
        return verdicts, commit

    async def _settle(self, verdicts: Sequence[Verdict], commit: Commit | None) -> None:
        """Publish what was committed, then tell the broker what became of each message."""
        try:
            await self._chassis.outbox.publish(commit)
            acks = [verdict for verdict in verdicts if isinstance(verdict, Ack)]
            await self.puller.ack([ack.delivery for ack in acks])
            for said, count in Tally([ack.said for ack in acks]).items():
                self._count(said, count)
            if len(acks) < len(verdicts):
                for verdict in verdicts:
                    await self._say(verdict)
        finally:
            self.puller.release(len(verdicts))

    async def _say(self, verdict: Verdict) -> None:
        match verdict:
            case Nak(delivery, delay_s):
                await self.puller.nak(delivery, delay_s)
                self._count("retry")
            case Term():
                await self._park(verdict)

    async def _park(self, term: Term) -> None:
        """Have the dead letter kept, too; what fails here is made good by the releases."""
        letter = letter_of(self._chassis.service, term)
        try:
            seq = await park(self._chassis.broker, letter)
            delivery = term.delivery
            await parking.mark_letter(
                self._chassis.database, delivery.stream, delivery.stream_seq, seq
            )
        except (Unavailable, BrokerError) as error:
            structlog.get_logger().warning("Dead letter comes later", error=str(error))
        structlog.get_logger().error(
            "Dead letter",
            event_type=term.kind,
            reason=term.reason,
            attempt=term.attempts,
            stream=term.delivery.stream,
            stream_seq=term.delivery.stream_seq,
        )
        why = letter.headers["Ironcart-Reason"].encode()
        await self.puller.send(term.delivery, b"+TERM " + why)
        telemetry.dead_letters.labels(self.label, term.kind).inc()
        self._count("park")

    def _count(self, said: str, count: int = 1) -> None:
        telemetry.outcomes.labels(self.label, said).inc(count)
