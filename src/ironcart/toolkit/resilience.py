"""Patience and restraint: back-off with full jitter, and the circuit breaker."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from ironcart.toolkit.outcomes import Unavailable

FAILURES_BEFORE_OPEN_MAX = 5
OPEN_S = 30.0
PERMIT_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter: up to `first_s`, doubling, never above `max_s`."""

    attempts_max: int = 8
    first_s: float = 0.5
    max_s: float = 60.0

    def delay_s(self, attempt: int) -> float:
        """Draw the pause after failed attempt `attempt`, counted from 1; at least a tenth of it."""
        ceiling = min(self.max_s, self.first_s * 2.0 ** min(attempt - 1, 30))
        return random.uniform(ceiling / 10, ceiling)  # noqa: S311 - jitter, not a secret


class BreakerState(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class BreakerOpen(Unavailable):
    """The call was not made: the other side is being left in peace."""


Change = Callable[[str, BreakerState, BreakerState], None]


class Breaker:
    """Opens after more than `failures_max` consecutive failures, lets one probe through after
    `open_s` seconds, and closes when that probe succeeds.

    Only `Unavailable` counts as a failure: an answer is an answer, and cancellation is neutral.
    Outcomes of calls that began before the last change of state are dropped. Not thread-safe; all
    changes happen between awaits of one event loop. Once `shared`, a probe needs a `permit`, since
    one replica probes for all (`toolkit.breakers`).
    """

    def __init__(
        self,
        name: str,
        *,
        failures_max: int = FAILURES_BEFORE_OPEN_MAX,
        open_s: float = OPEN_S,
        on_change: Change | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.state = BreakerState.CLOSED
        self._failures_max, self._open_s = failures_max, open_s
        self.on_change, self._clock = on_change, clock
        self.shared = False
        self._permitted = False
        self._failures = 0
        self._opened_at = 0.0
        self._generation = 0
        self._probing = False

    def wait_s(self) -> float:
        """Seconds until a call may be made; 0.0 when one may be made now."""
        if self.state is BreakerState.OPEN:
            wait_s = max(0.0, self._opened_at + self._open_s - self._clock())
            return wait_s or (PERMIT_WAIT_S if self.shared and not self._permitted else 0.0)
        if self.state is BreakerState.HALF_OPEN and self._probing:
            return self._open_s / 30
        return 0.0

    def permit(self) -> None:
        """Let this replica make the next probe."""
        self._permitted = True

    def opened_elsewhere(self, wait_s: float) -> None:
        """Take over that a replica found the other side dead: no call for `wait_s` seconds."""
        if self.state is BreakerState.CLOSED:
            self._move(BreakerState.OPEN)
        if self.state is BreakerState.OPEN:
            self._opened_at = self._clock() - self._open_s + wait_s

    def closed_elsewhere(self) -> None:
        """Take over that a replica's probe was answered."""
        if self.state is not BreakerState.CLOSED:
            self._move(BreakerState.CLOSED)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Make one call inside; raises `BreakerOpen` with the wait when it must not be made."""
        if (wait_s := self.wait_s()) > 0:
            raise BreakerOpen(f"breaker {self.name} is {self.state}", wait_s)
        if self.state is BreakerState.OPEN:
            self._move(BreakerState.HALF_OPEN)
        probe = self.state is BreakerState.HALF_OPEN
        self._probing = self._probing or probe
        generation = self._generation
        try:
            yield
        except Unavailable:
            if generation == self._generation:
                self._failures += 1
                if probe or self._failures > self._failures_max:
                    self._move(BreakerState.OPEN)
            raise
        except BaseException as error:
            if generation == self._generation:
                self._neutral_or_answer(error, probe)
            raise
        else:
            if generation == self._generation:
                self._succeed(probe)

    def _neutral_or_answer(self, error: BaseException, probe: bool) -> None:
        if isinstance(error, Exception):  # An error that is an answer proves the other side lives.
            self._succeed(probe)
        elif probe:  # Cancelled: no verdict, the next caller may probe.
            self._probing = False

    def _succeed(self, probe: bool) -> None:
        self._failures = 0
        if probe:
            self._move(BreakerState.CLOSED)

    def _move(self, to: BreakerState) -> None:
        previous, self.state = self.state, to
        self._generation += 1
        self._failures = 0
        self._probing = self._permitted = False
        if to is BreakerState.OPEN:
            self._opened_at = self._clock()
        if self.on_change is not None:
            self.on_change(self.name, previous, to)
