"""Verdicts: what the broker is told about a message, decided in one place."""

from msgspec import Struct

from ironcart.toolkit.broker import Delivery
from ironcart.toolkit.outcomes import Done, Outcome, Park, Retry
from ironcart.toolkit.resilience import Backoff


class Ack(Struct, frozen=True):
    """Dealt with: `said` tells how, for the metrics."""

    delivery: Delivery
    said: str = "done"


class Nak(Struct, frozen=True):
    """Again later."""

    delivery: Delivery
    delay_s: float


class Term(Struct, frozen=True):
    """Never again: its dead letter comes first."""

    delivery: Delivery
    kind: str
    reason: str
    error: str
    attempts: int


Verdict = Ack | Nak | Term


def judge(
    delivery: Delivery, kind: str, outcome: Outcome, attempts: int, backoff: Backoff
) -> Verdict:
    """Turn an outcome and the number of failed attempts into what the broker is told."""
    match outcome:
        case Done():
            return Ack(delivery)
        case Park(reason):
            return Term(delivery, kind, reason, reason, attempts)
        case Retry(reason, delay_s):
            if attempts >= backoff.attempts_max:
                return Term(
                    delivery, kind, f"exhausted after {attempts} attempts", reason, attempts
                )
            return Nak(delivery, backoff.delay_s(attempts) if delay_s is None else delay_s)
