"""The sandbox's records: intents, refunds, changes and failures; immutable, kept as JSON lines."""

from collections.abc import Callable
from typing import Literal, NoReturn

import msgspec

from ironcart.embedded.sandbox.cards import Verdict

Status = Literal[
    "requires_payment_method", "requires_confirmation", "requires_action", "succeeded", "canceled"
]
Issuer = Callable[[str], Verdict]
NewId = Callable[[str], str]

OPEN: frozenset[Status] = frozenset(
    {"requires_payment_method", "requires_confirmation", "requires_action"}
)


class Decline(msgspec.Struct, frozen=True, gc=False):
    """Why the last attempt failed, and with which payment method."""

    code: str
    decline_code: str
    message: str
    payment_method: str


class Intent(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One payment intent; amounts in minor units, `seq` its place among all intents, from 0."""

    id: str
    seq: int
    amount: int
    currency: str
    created: int
    status: Status
    payment_method: str | None = None
    metadata: dict[str, str] = {}
    description: str | None = None
    attempts: int = 0
    captured: int = 0
    refunded: int = 0
    decline: Decline | None = None
    canceled_at: int | None = None
    cancellation_reason: str | None = None
    keys: tuple[str, ...] = ()

    @property
    def charge_id(self) -> str | None:
        """The charge of the latest attempt; None before the first."""
        return f"ch_{self.id[3:]}{self.attempts:02d}" if self.attempts else None


class Refund(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Money given back, in minor units; it succeeds at once."""

    id: str
    seq: int
    intent_id: str
    charge_id: str
    amount: int
    currency: str
    created: int
    reason: str | None = None
    metadata: dict[str, str] = {}


class Failure(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An error answer in Stripe's terms."""

    status: int
    type: str
    message: str
    code: str | None = None
    param: str | None = None
    decline_code: str | None = None


class Change(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One request that began to execute: the records as it left them, and how it was answered.

    The answer is a pure function of this record, so a replay is the first answer, byte for byte.
    """

    at: float
    intent: Intent | None = None
    refund: Refund | None = None
    failure: Failure | None = None
    key: str | None = None
    fingerprint: str | None = None
    keys_expired: bool = False


class Attempt(msgspec.Struct, frozen=True):
    """How a confirmation wants to pay; with `no_action` a card that needs action is declined."""

    payment_method: str | None = None
    no_action: bool = False


class Draft(msgspec.Struct, frozen=True):
    """What the caller asks of a new intent; `attempt` is set to confirm it at once."""

    amount: int
    currency: str
    payment_method: str | None = None
    metadata: dict[str, str] = {}
    description: str | None = None
    attempt: Attempt | None = None


class Refused(Exception):
    """The request never began to execute: nothing changed, and no idempotency key is saved."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def refuse(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> NoReturn:
    """Refuse a request before it begins."""
    raise Refused(Failure(status, "invalid_request_error", message, code, param))
