"""One try at a batch: inbox, handler, history in one transaction; in parts where it has to be."""

from collections import Counter as Tally
from collections.abc import Sequence

import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from ironcart.toolkit import history, telemetry
from ironcart.toolkit.database import Connection, Transaction
from ironcart.toolkit.history import Cause, Commit
from ironcart.toolkit.loop import parking
from ironcart.toolkit.loop.subscriptions import Chassis, Message, Subscription
from ironcart.toolkit.loop.verdicts import Ack, Nak, Term, Verdict, judge
from ironcart.toolkit.outcomes import Done, Fact, Outcome, Poison, Refused, Retry, Unavailable


class _Overtaken(Exception):
    """A message has to be parked, and later ones of its aggregate went on in the same batch."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


class Attempt:
    """One try at a batch, in halves when a bug stands in the way."""

    def __init__(self, chassis: Chassis, subscription: Subscription, label: str) -> None:
        self._chassis, self._subscription, self._label = chassis, subscription, label

    async def split(self, messages: Sequence[Message]) -> tuple[list[Verdict], Commit | None]:
        """Run the batch; on what is no outage, run its halves by themselves.

        A message that is to be parked ends a part, when others of its aggregate come after it.
        """
        middle = len(messages) // 2
        try:
            return await self._run(messages)
        except (Unavailable, Refused):  # Nothing that a message has done.
            raise
        except _Overtaken as error:
            middle = error.position + 1
        except Exception as error:  # noqa: BLE001 - a handler's bug must not stop its neighbours
            if len(messages) == 1:
                return [await self._fail(messages[0], error)], None
        left, left_commit = await self.split(messages[:middle])
        # The second commit goes out at once: the caller settles one commit only.
        await self._chassis.outbox.publish(left_commit)
        right, right_commit = await self.split(messages[middle:])
        return left + right, right_commit

    async def _run(self, messages: Sequence[Message]) -> tuple[list[Verdict], Commit | None]:
        chassis = self._chassis
        facts: list[tuple[Fact, Cause]] = []
        async with chassis.database.transaction() as connection:
            transaction = Transaction(connection)
            todo, verdicts = await self._admit(connection, messages)
            spans: list[trace.Span] = []
            if chassis.tracing.on:
                todo = [self._traced(message, spans) for message in todo]
            outcomes = await self._subscription.handle(todo, transaction) if todo else []
            assert len(outcomes) == len(todo), "one outcome for each message"
            for message, outcome in zip(todo, outcomes, strict=True):
                if isinstance(outcome, Done):
                    facts += [(fact, message.cause) for fact in outcome.emit]
                    verdicts.append(Ack(message.delivery))
                    continue
                verdict = await self._verdict(connection, message, outcome)
                if isinstance(verdict, Term):
                    _look_behind(messages, message)
                verdicts.append(verdict)
            if terms := [each for each in verdicts if isinstance(each, Term)]:
                await parking.set_aside(connection, terms)
            if again := {id(each.delivery) for each in verdicts if isinstance(each, Nak)}:
                keys = [message.key for message in todo if id(message.delivery) in again]
                await history.withdraw(connection, keys)
            commit = await chassis.history.record(connection, facts)
        for span in spans:
            span.end()
        for then in transaction.after_commit:
            then()
        return verdicts, commit

    async def _admit(
        self, connection: Connection, messages: Sequence[Message]
    ) -> tuple[list[Message], list[Verdict]]:
        """Say which messages are to be dealt with now; the others are known, or have to wait."""
        stream = messages[0].delivery.stream
        arrivals = [(message.key, message.delivery.stream_seq) for message in messages]
        fresh = await history.admit(connection, stream, arrivals)
        shut = await parking.blocked(connection, {m.envelope.aggregate_id for m in messages})
        todo: list[Message] = []
        behind: list[Message] = []
        verdicts: list[Verdict] = []
        for kind, count in Tally([message.envelope.type for message in messages]).items():
            telemetry.consumed.labels(self._label, kind).inc(count)
        for message in messages:
            if message.key not in fresh:
                verdicts.append(Ack(message.delivery, "duplicate"))
                continue
            fresh.remove(message.key)  # A twin in this batch is a duplicate.
            if message.envelope.aggregate_id in shut:
                behind.append(message)
                verdicts.append(Ack(message.delivery, "held"))
            else:
                todo.append(message)
        if behind:
            await parking.hold(connection, behind)
        return todo, verdicts

    def _traced(self, message: Message, spans: list[trace.Span]) -> Message:
        """Begin a span for a message; what follows from the message lies inside it."""
        span, inside = self._chassis.tracing.start(
            f"process {message.delivery.subject}",
            SpanKind.CONSUMER,
            message.cause.context,
            messaging__system="nats",
            messaging__operation__name="process",
            messaging__operation__type="process",
            messaging__destination__name=message.delivery.subject,
            messaging__message__id=message.envelope.id,
            messaging__consumer__group__name=self._subscription.durable.name,
            ironcart__aggregate_id=message.envelope.aggregate_id,
        )
        if span is None:
            return message
        spans.append(span)
        cause = Cause(message.cause.trace_id, inside, message.cause.causation_id)
        return Message(message.key, message.envelope, message.data, message.delivery, cause)

    async def _verdict(self, connection: Connection, message: Message, outcome: Outcome) -> Verdict:
        attempts, delivery = 0, message.delivery
        if isinstance(outcome, Retry):
            attempts = await history.count_failure(
                connection, delivery.stream, delivery.stream_seq, outcome.reason
            )
        return judge(delivery, message.envelope.type, outcome, attempts, self._chassis.backoff)

    async def _fail(self, message: Message, error: Exception) -> Verdict:
        """A single message that raises: a poison says so itself, a bug is tried again, counted."""
        delivery, kind = message.delivery, message.envelope.type
        if isinstance(error, Poison):
            return await self._park(Term(delivery, kind, str(error), str(error), 0))
        text = f"{type(error).__name__}: {error}"
        structlog.get_logger().error(
            "A handler failed",
            exc_info=error,
            event_id=message.envelope.id,
            event_type=kind,
            order_id=message.envelope.aggregate_id,
        )
        async with self._chassis.database.acquire() as connection:
            attempts = await history.count_failure(
                connection, delivery.stream, delivery.stream_seq, text
            )
        verdict = judge(
            delivery, kind, Retry(f"unexpected {text}"), attempts, self._chassis.backoff
        )
        return await self._park(verdict) if isinstance(verdict, Term) else verdict

    async def _park(self, term: Term) -> Term:
        async with self._chassis.database.transaction() as connection:
            await parking.set_aside(connection, [term])
        return term


def _look_behind(messages: Sequence[Message], parked: Message) -> None:
    """Raise when a batch has later messages of an aggregate than one that is to be parked."""
    positions = [
        position
        for position, each in enumerate(messages)
        if each.envelope.aggregate_id == parked.envelope.aggregate_id
    ]
    first = next(position for position in positions if messages[position].key == parked.key)
    if positions[-1] > first:
        raise _Overtaken(first)
