"""One try at a batch: inbox, handler, history in one transaction; in halves round a bug."""

from collections.abc import Sequence
from typing import Any

import structlog
from opentelemetry.trace import SpanKind

from ironcart.toolkit import history, telemetry
from ironcart.toolkit.database import Connection, Transaction
from ironcart.toolkit.history import Cause, Commit
from ironcart.toolkit.loop.subscriptions import Chassis, Message, Subscription
from ironcart.toolkit.loop.verdicts import Ack, Term, Verdict, judge
from ironcart.toolkit.outcomes import Done, Fact, Outcome, Poison, Refused, Retry, Unavailable


class Attempt:
    """One try at a batch, in halves when a bug stands in the way."""

    def __init__(self, chassis: Chassis, subscription: Subscription, label: str) -> None:
        self._chassis, self._subscription, self._label = chassis, subscription, label

    async def split(self, messages: Sequence[Message]) -> tuple[list[Verdict], Commit | None]:
        """Run the batch; on what is no outage, run its halves by themselves."""
        try:
            return await self._run(messages)
        except (Unavailable, Refused):  # Nothing that a message has done.
            raise
        except Exception as error:  # noqa: BLE001 - a handler's bug must not stop its neighbours
            if len(messages) == 1:
                return [await self._fail(messages[0], error)], None
        middle = len(messages) // 2
        left, left_commit = await self.split(messages[:middle])
        # The second commit goes out at once: the caller settles one commit only.
        await self._chassis.outbox.publish(left_commit)
        right, right_commit = await self.split(messages[middle:])
        return left + right, right_commit

    async def _run(self, messages: Sequence[Message]) -> tuple[list[Verdict], Commit | None]:
        chassis, delivery = self._chassis, messages[0].delivery
        facts: list[tuple[Fact, Cause]] = []
        commit: Commit | None = None
        verdicts: list[Verdict] = []
        spans = []
        async with chassis.database.transaction() as connection:
            transaction = Transaction(connection)
            arrivals = [(message.key, message.delivery.stream_seq) for message in messages]
            fresh = await history.admit(connection, delivery.stream, arrivals)
            todo: list[Message] = []
            for message in messages:
                telemetry.consumed.labels(self._label, message.envelope.type).inc()
                if message.key in fresh:
                    fresh.remove(message.key)  # A twin in this batch is a duplicate.
                    traced, span = self._traced(message)
                    todo.append(traced)
                    spans.append(span)
                else:
                    verdicts.append(Ack(message.delivery, "duplicate"))
            outcomes = await self._subscription.handle(todo, transaction) if todo else []
            assert len(outcomes) == len(todo), "one outcome for each message"
            refused = []
            for message, outcome in zip(todo, outcomes, strict=True):
                if isinstance(outcome, Done):
                    facts += [(fact, message.cause) for fact in outcome.emit]
                verdicts.append(await self._verdict(connection, message, outcome))
                if not isinstance(outcome, Done):
                    refused.append(message.key)
            if refused:
                await history.withdraw(connection, refused)
            commit = await chassis.history.record(connection, facts)
        for span in spans:
            if span is not None:
                span.end()
        for then in transaction.after_commit:
            then()
        return verdicts, commit

    def _traced(self, message: Message) -> tuple[Message, Any]:
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
            return message, None
        cause = Cause(message.cause.trace_id, inside, message.cause.causation_id)
        return (
            Message(message.key, message.envelope, message.data, message.delivery, cause),
            span,
        )

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
            return Term(delivery, kind, str(error), str(error), 0)
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
        return judge(delivery, kind, Retry(f"unexpected {text}"), attempts, self._chassis.backoff)
