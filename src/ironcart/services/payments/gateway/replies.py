"""What the gateway can say: definite answers only, each a value."""

from msgspec import Struct


class Created(Struct, frozen=True):
    """An intent exists; no money can move until it is confirmed."""

    intent_id: str


class Succeeded(Struct, frozen=True):
    """The money moved."""


class Declined(Struct, frozen=True):
    """The card said no; the intent could still be confirmed by somebody, so cancel it."""

    code: str


class Canceled(Struct, frozen=True):
    """The intent can never move money."""


class Refunded(Struct, frozen=True):
    """The money is on its way back, all of it."""


class OperatorRefunded(Struct, frozen=True):
    """An operator's refund is over; `total_minor` is all that has gone back so far.

    `refused` says why it could not be made, if it could not.
    """

    total_minor: int
    refused: str | None = None


class Seen(Struct, frozen=True):
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


class Found(Struct, frozen=True):
    """Somebody went and looked at an intent; None when the gateway does not know it."""

    seen: Seen | None


class Swept(Struct, frozen=True):
    """Every intent of an order is closed for good; `captured` is the one that took money."""

    captured: Seen | None
    intents: int


Reply = Created | Succeeded | Declined | Canceled | Refunded | OperatorRefunded | Found | Swept
