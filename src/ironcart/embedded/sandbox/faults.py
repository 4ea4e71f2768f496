"""Faults on demand: which are on, how often they strike, and how often they have."""

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, get_args

import msgspec

GatewayMode = Literal["down", "slow", "error", "decline", "lose_response", "hang"]
MailMode = Literal["mail_down", "mail_error", "mail_reject"]
Mode = GatewayMode | MailMode
MODES: tuple[str, ...] = (*get_args(GatewayMode), *get_args(MailMode))

MAX_SECONDS_S = 86_400.0
MAX_DELAY_S = 600.0
DEFAULT_SECONDS_S = 30.0
DEFAULT_DELAY_S = 2.0


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One fault as it is asked for: struck with probability `rate` for `seconds`.

    `delay_s` is for slow; `begun` for error: the 500 is then saved under the idempotency key, as
    Stripe does when a request had begun to execute.
    """

    mode: str
    rate: float = 1.0
    seconds: float = DEFAULT_SECONDS_S
    delay_s: float = DEFAULT_DELAY_S
    begun: bool = False


class InvalidFaultError(ValueError):
    """A fault that cannot be; the message says what to change."""


def parse_fault(body: bytes) -> Fault:
    """Read the JSON body of POST /sandbox/faults; InvalidFaultError with one clear line."""
    try:
        fault = msgspec.json.decode(body, type=Fault)
    except msgspec.DecodeError as error:
        raise InvalidFaultError(f"not a fault: {error}") from error
    if fault.mode not in MODES:
        raise InvalidFaultError(f"mode must be one of {', '.join(MODES)}; got {fault.mode!r}")
    if not 0 <= fault.rate <= 1:
        raise InvalidFaultError(f"rate must be from 0 to 1; got {fault.rate:g}")
    if not 0 < fault.seconds <= MAX_SECONDS_S:
        raise InvalidFaultError(
            f"seconds must be above 0 and at most {MAX_SECONDS_S:g}; got {fault.seconds:g}"
        )
    if not 0 <= fault.delay_s <= MAX_DELAY_S:
        raise InvalidFaultError(f"delay_s must be from 0 to {MAX_DELAY_S:g}; got {fault.delay_s:g}")
    return fault


class Faults:
    """The faults that are on; one of each mode, a newer one replaces an older.

    `changed(what, fault)` is told of every fault that is set, cleared or has expired.
    """

    def __init__(
        self,
        changed: Callable[[str, Fault], None],
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._changed = changed
        self._clock = clock
        self._draw = draw
        self._on: dict[str, tuple[Fault, float]] = {}
        self.hits: Counter[str] = Counter()

    def set(self, fault: Fault) -> None:
        """Switch a fault on, from now."""
        self._on[fault.mode] = (fault, self._clock() + fault.seconds)
        self._changed("set", fault)

    def clear(self) -> None:
        """Switch every fault off."""
        for fault, _ in self._on.values():
            self._changed("cleared", fault)
        self._on.clear()

    def strikes(self, mode: Mode) -> Fault | None:
        """Draw once: the fault when it strikes this time, else None. Strikes are counted."""
        if not self._on:
            return None
        fault = self._present(mode)
        if fault is None or self._draw() >= fault.rate:
            return None
        self.hits[mode] += 1
        return fault

    def report(self) -> dict[str, Any]:
        """What is on, with the seconds left, and the strikes of each mode since the start."""
        now = self._clock()
        on = [mode for mode in list(self._on) if self._present(mode)]
        return {
            "faults": [
                {
                    **msgspec.structs.asdict(self._on[mode][0]),
                    "seconds_left": round(self._on[mode][1] - now, 3),
                }
                for mode in on
            ],
            "hits": {mode: self.hits[mode] for mode in MODES},
        }

    def _present(self, mode: str) -> Fault | None:
        entry = self._on.get(mode)
        if entry is None:
            return None
        fault, until = entry
        if self._clock() < until:
            return fault
        del self._on[mode]
        self._changed("expired", fault)
        return None
