"""What can become of a message, and what can go wrong on the way: the whole taxonomy.

A handler *returns* one outcome for each message; only adapters *raise*; only the loops catch.

    Outcome
      Done    dealt with; what it emits travels            -> ack
      Retry   the world is unwell, try this one later      -> nak with a jittered delay, counted
      Park    this message can never succeed               -> dead letter first, then term

    IroncartError
      Unavailable      an outage: nothing is counted against any message, work waits
        LostRace       the database asked for the transaction to be run again
      Poison           these bytes can never be handled: parked with the reason
      Refused          a credential or a set-up is wrong: the process ends and says so
        InvalidSettings   the environment does not make sense: every fault is listed
"""

from typing import Any

from msgspec import Struct


class Fact(Struct, frozen=True):
    """One event to emit: `data` is a struct whose class name is the event's type.

    `version` is the position in the aggregate's own history at its owner, from 1; the event's id
    follows from it, so that writing one fact twice gives one id.
    """

    aggregate_id: str
    version: int
    data: Any


class Done(Struct, frozen=True):
    """Dealt with; a business "no" is also `Done`, with the fact that says so."""

    emit: tuple[Fact, ...] = ()


class Retry(Struct, frozen=True):
    """Try this message again; nothing was written for it. `delay_s` overrides the back-off."""

    reason: str
    delay_s: float | None = None


class Park(Struct, frozen=True):
    """Set this message aside for a person, with the reason; nothing was written for it."""

    reason: str


Outcome = Done | Retry | Park


class IroncartError(Exception):
    """Whatever Ironcart itself raises."""


class Unavailable(IroncartError):
    """Something we depend on does not answer; `retry_after_s` when it said how long."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class LostRace(Unavailable):
    """A deadlock, a serialization failure or a lock not had in time: run it again."""


class Poison(IroncartError):
    """These bytes can never be handled; the text is the reason that goes with the dead letter."""


class Refused(IroncartError):
    """A credential or a set-up that waiting will not mend; the text says what to change."""


class InvalidSettings(Refused):
    """The environment does not make sense; the text lists every fault."""
