"""Releases: what was set aside and is now to be dealt with, in order, one message at a time.

The first open row of an aggregate decides: while it is parked the rest waits; once a person has
released or discarded it, it and what waits behind it go through the same handler as ever. Dead
letters that could not be kept at once are kept from here.
"""

from collections.abc import Sequence

import structlog

from ironcart.toolkit import history, telemetry
from ironcart.toolkit.broker import BrokerError, Outgoing
from ironcart.toolkit.database import Connection, Transaction
from ironcart.toolkit.deadletters import dead_letter, park
from ironcart.toolkit.history import Commit
from ironcart.toolkit.loop import parking
from ironcart.toolkit.loop.parking import COLUMNS, OPEN, Parked
from ironcart.toolkit.loop.reading import read
from ironcart.toolkit.loop.rounds import Rounds
from ironcart.toolkit.loop.subscriptions import Chassis, Message, RawSubscription, Subscription
from ironcart.toolkit.loop.verdicts import Term
from ironcart.toolkit.outcomes import Done, Outcome, Park, Poison, Refused, Retry, Unavailable

RELEASE_EVERY_S = 1.0
DUE_MAX = 100
LETTERS_MAX = 100
LETTER_AFTER_S = 2.0


def letter_of(service: str, term: Term) -> Outgoing:
    """The dead letter of a message that was set aside."""
    return dead_letter(
        service,
        term.delivery,
        term.kind,
        reason=term.reason,
        error=term.error,
        attempts=term.attempts,
    )


class Releases:
    """One for each service; replicas share the rows."""

    def __init__(
        self, chassis: Chassis, subscriptions: Sequence[Subscription | RawSubscription]
    ) -> None:
        self._chassis = chassis
        self._by_stream = {
            each.durable.stream: each for each in subscriptions if isinstance(each, Subscription)
        }
        self._rounds = Rounds("release what was set aside", RELEASE_EVERY_S, self.step)

    async def run(self) -> None:
        """Deal with what is released until stopped."""
        await self._rounds.run()

    def stop(self) -> None:
        """Begin nothing more."""
        self._rounds.stop()

    async def step(self) -> bool:
        """Deal with what is due, once each; says whether there may be more."""
        row = await self._chassis.database.fetchrow(_MEASURE)
        assert row is not None
        telemetry.parked.set(row["parked"])
        telemetry.waiting_behind.set(row["waiting"])
        if not row["parked"] + row["waiting"] + row["released"]:
            return False
        due = await self._chassis.database.fetch(_DUE, DUE_MAX)
        dealt = [await self._deal_with(each["no"]) for each in due]
        await self._keep_letters()
        return any(dealt)

    async def _deal_with(self, no: int) -> bool:
        """Deal with one row in a transaction of its own; says whether it is out of the way."""
        try:
            done, commit = await self._try(no)
        except (Unavailable, Refused):
            raise
        except Exception as error:  # noqa: BLE001 - one message's bug must not stop the others
            text = f"{type(error).__name__}: {error}"
            structlog.get_logger().error("A handler failed", exc_info=error, parked=no)
            async with self._chassis.database.transaction() as connection:
                outcome = Park(text) if isinstance(error, Poison) else Retry(f"unexpected {text}")
                await self._postpone(connection, no, outcome)
            return False
        if commit is not None:
            await self._chassis.outbox.publish(commit)
        return done

    async def _try(self, no: int) -> tuple[bool, Commit | None]:
        chassis = self._chassis
        async with chassis.database.transaction() as connection:
            row = await connection.fetchrow(_LOCK, no)
            if row is None:
                return False, None
            parked = parking.of(row)
            transaction = Transaction(connection)
            subscription = self._by_stream[parked.stream]
            message = read(parked.as_delivery(), subscription.kinds, subscription.aggregate_of)
            outcome = await self._handle(parked, message, transaction)
            if not isinstance(outcome, Done):
                # Nothing was written for it, nor is it known by now.
                if parked.event_id is None:
                    await history.withdraw(connection, [message.key])
                await self._postpone(connection, no, outcome)
                return False, None
            facts = [(fact, message.cause) for fact in outcome.emit]
            commit = await chassis.history.record(connection, facts)
            await connection.execute(_END, no)
        for then in transaction.after_commit:
            then()
        structlog.get_logger().info(
            "Released", event_id=message.envelope.id, order_id=message.envelope.aggregate_id
        )
        return True, commit

    async def _handle(self, parked: Parked, message: Message, transaction: Transaction) -> Outcome:
        if parked.event_id is None:  # It could not be read when it came: is it known by now?
            arrival = (message.key, parked.stream_seq)
            if not await history.admit(transaction.connection, parked.stream, [arrival]):
                return Done()
        handle = self._by_stream[parked.stream].handle
        (outcome,) = await handle([message], transaction)
        return outcome

    async def _postpone(self, connection: Connection, no: int, outcome: Outcome) -> None:
        backoff = self._chassis.backoff
        attempts: int = await connection.fetchval(_COUNT, no)
        match outcome:
            case Park(reason):
                await connection.execute(_PARK_AGAIN, no, reason)
            case Retry(reason) if attempts >= backoff.attempts_max:
                await connection.execute(_PARK_AGAIN, no, f"exhausted: {reason}")
            case Retry(_, delay_s):
                wait_s = backoff.delay_s(attempts) if delay_s is None else delay_s
                await connection.execute(_LATER, no, wait_s)

    async def _keep_letters(self) -> None:
        rows = await self._chassis.database.fetch(_WITHOUT_LETTER, LETTER_AFTER_S, LETTERS_MAX)
        for row in rows:
            parked = parking.of(row)
            term = Term(
                parked.as_delivery(), row["type"], row["reason"], row["error"], row["attempts"]
            )
            try:
                seq = await park(self._chassis.broker, letter_of(self._chassis.service, term))
            except BrokerError as error:
                structlog.get_logger().error("A dead letter is refused", error=str(error))
                continue
            await parking.mark_letter(self._chassis.database, parked.stream, parked.stream_seq, seq)


_MEASURE = f"""
SELECT count(*) FILTER (WHERE state = 'parked') AS parked,
       count(*) FILTER (WHERE state = 'waiting') AS waiting,
       count(*) FILTER (WHERE state = 'released') AS released
FROM parked WHERE state IN {OPEN}
"""  # noqa: S608 - a constant
_FIRST = f"""
NOT EXISTS (SELECT 1 FROM parked b WHERE b.aggregate_id = p.aggregate_id AND b.aggregate_id <> ''
            AND b.no < p.no AND b.state IN {OPEN})
"""  # noqa: S608 - a constant
_DUE = f"""
SELECT no FROM parked p WHERE state IN ('released', 'waiting') AND due_at <= now() AND {_FIRST}
ORDER BY no LIMIT $1
"""  # noqa: S608 - constants
_LOCK = f"""
SELECT {COLUMNS} FROM parked p
WHERE no = $1 AND state IN ('released', 'waiting') AND {_FIRST} FOR UPDATE SKIP LOCKED
"""  # noqa: S608 - constants
_END = "UPDATE parked SET state = 'replayed', changed_at = now() WHERE no = $1"
_COUNT = "UPDATE parked SET attempts = attempts + 1 WHERE no = $1 RETURNING attempts"
_PARK_AGAIN = """
UPDATE parked SET state = 'parked', reason = left($2, 500), error = left($2, 2000),
                  changed_at = now()
WHERE no = $1
"""
_LATER = "UPDATE parked SET due_at = now() + make_interval(secs => $2) WHERE no = $1"
_WITHOUT_LETTER = f"""
SELECT {COLUMNS} FROM parked WHERE letter_seq IS NULL AND state = 'parked'
  AND changed_at < now() - make_interval(secs => $1) ORDER BY no LIMIT $2
"""  # noqa: S608 - a constant
