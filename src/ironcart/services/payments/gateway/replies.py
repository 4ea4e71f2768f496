"""What the gateway can say: definite answers only, each a value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Created:
    """An intent exists; no money can move until it is confirmed."""

    intent_id: str


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The money moved."""


@dataclass(frozen=True, slots=True)
class Declined:
    """The card said no; the intent could still be confirmed by somebody, so cancel it."""

    code: str


@dataclass(frozen=True, slots=True)
class Canceled:
    """The intent can never move money."""


@dataclass(frozen=True, slots=True)
class Refunded:
    """The money is on its way back, all of it."""


@dataclass(frozen=True, slots=True)
class OperatorRefunded:
    """An operator's refund is over; `total_minor` is all that has gone back so far.

    `refused` says why it could not be made, if it could not.
    """

    total_minor: int
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """An intent as the gateway shows it; amounts in minor units, `created` in unix seconds."""

    intent_id: str
    order_id: str | None
    status: str
    amount_minor: int
    captured_minor: int
    refunded_minor: int
    currency: str
    payment_method: str
    created: int

    @property
    def is_open(self) -> bool:
        """Whether it could still take money."""
        return self.status not in ("succeeded", "canceled")

    @property
    def owed_minor(self) -> int:
        """What would have to go back for nothing to be kept."""
        return max(0, self.captured_minor - self.refunded_minor)


@dataclass(frozen=True, slots=True)
class Found:
    """Somebody went and looked at an intent; None when the gateway does not know it."""

    seen: Seen | None


@dataclass(frozen=True, slots=True)
class Swept:
    """Every intent of an order is closed for good; `captured` is the one that took money."""

    captured: Seen | None
    intents: int


Reply = Created | Succeeded | Declined | Canceled | Refunded | OperatorRefunded | Found | Swept
