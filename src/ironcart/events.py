"""The public language: every event as a frozen struct, grouped by the service that owns it.

Readers ignore fields that they do not know. Money is exact: a `Decimal` on the wire, a JSON number
with the currency's exponent, integer minor units everywhere else.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from ironcart.toolkit.envelope import Name
from ironcart.toolkit.topology import DEAD_LETTER_STREAM, Durable, Stream
from ironcart.toolkit.vault import CONTACT_CHARACTERS_MAX

# ISO 4217 code -> decimals of its minor unit. Any other currency is refused.
CURRENCIES: Final[Mapping[str, int]] = {
    "EUR": 2,
    "USD": 2,
    "GBP": 2,
    "CHF": 2,
    "SEK": 2,
    "JPY": 0,
}
CURRENCY_DEFAULT: Final = "EUR"
AMOUNT_MINOR_UNITS_MAX: Final = 99_999_999
# Below the precision of decimal's context, so that no step of ours ever rounds.
AMOUNT_DIGITS_MAX: Final = 20
QUANTITY_MAX: Final = 1_000_000
LINES_MAX: Final = 100

Quantity = Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]
Money = Annotated[Decimal, Meta(description="exact, with the currency's decimals")]
Currency = Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z")]
PaymentMethod = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{1,255}\Z")]
Contact = Annotated[str, Meta(min_length=1, max_length=CONTACT_CHARACTERS_MAX)]
Reason = Annotated[str, Meta(max_length=255)]
Reference = Annotated[str, Meta(max_length=255)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="SHA-256 in hex")]


class Item(Struct, frozen=True):
    """One line of an order."""

    sku: Name
    quantity: Quantity
    unit_price: Money


class Line(Struct, frozen=True):
    """Units of one SKU."""

    sku: Name
    quantity: Annotated[int, Meta(ge=1)]


class Shortage(Struct, frozen=True):
    """A line that could not be had."""

    sku: Name
    requested: int
    available: int


class Requested(Struct, frozen=True):
    """The request that an order answers, so that its idempotency key outlives our database."""

    caller: Reason
    key: Digest
    fingerprint: Digest


class OrderCreated(Struct, frozen=True, omit_defaults=True):
    """An order was accepted. A producer elsewhere may leave out all but the first three.

    `placed_by` is the caller that sees it and may cancel it; it is left out where nobody was asked
    who called.
    """

    order_id: Name
    customer_id: Name
    amount: Money
    currency: Currency | None = None
    items: Annotated[tuple[Item, ...], Meta(max_length=LINES_MAX)] | None = None
    payment_method: PaymentMethod | None = None
    contact: Contact | None = None
    request: Requested | None = None
    placed_by: Reason | None = None

    def __post_init__(self) -> None:
        _check_order(self)


class OrderCancellationRequested(Struct, frozen=True):
    """Somebody wants the order undone; it is cancelled once the money is known to be safe."""

    order_id: Name
    requested_by: Reason
    reason: Reason


class OrderConfirmed(Struct, frozen=True, omit_defaults=True):
    """Reserved and paid: the order stands."""

    order_id: Name
    customer_id: Name
    amount: Money
    currency: Currency
    reason: Reason | None = None
    contact: Contact | None = None

    def __post_init__(self) -> None:
        minor_units(self.amount, self.currency)


class OrderRejected(Struct, frozen=True, omit_defaults=True):
    """The order cannot be; `reason` is `out_of_stock` or `payment_declined`."""

    order_id: Name
    customer_id: Name
    amount: Money
    currency: Currency
    reason: Reason
    contact: Contact | None = None

    def __post_init__(self) -> None:
        minor_units(self.amount, self.currency)


class OrderCancelled(Struct, frozen=True, omit_defaults=True):
    """The order was undone, and no money is kept; `reason` says on whose wish."""

    order_id: Name
    customer_id: Name
    amount: Money
    currency: Currency
    reason: Reason
    contact: Contact | None = None

    def __post_init__(self) -> None:
        minor_units(self.amount, self.currency)


class StockReserved(Struct, frozen=True, omit_defaults=True):
    """Every line is set aside; carries the order."""

    order_id: Name
    customer_id: Name
    amount: Money
    currency: Currency | None = None
    items: Annotated[tuple[Item, ...], Meta(max_length=LINES_MAX)] | None = None
    payment_method: PaymentMethod | None = None
    contact: Contact | None = None

    def __post_init__(self) -> None:
        _check_order(self)


class StockRejected(Struct, frozen=True):
    """Not every line was there, so none was taken."""

    order_id: Name
    short: tuple[Shortage, ...]


class StockCommitted(Struct, frozen=True):
    """What was set aside has left the shelf for good."""

    order_id: Name
    lines: tuple[Line, ...]


class StockReleased(Struct, frozen=True):
    """What was set aside is free again; no lines when there was nothing yet."""

    order_id: Name
    lines: tuple[Line, ...]


class StockAdjusted(Struct, frozen=True):
    """Somebody changed what is on hand; the aggregate is the SKU."""

    sku: Name
    delta: int
    reason: Reason


class PaymentSucceeded(Struct, frozen=True):
    """The money moved, once; `reference` is the gateway's."""

    order_id: Name
    amount: Money
    currency: Currency
    reference: Reference

    def __post_init__(self) -> None:
        minor_units(self.amount, self.currency)


class PaymentFailed(Struct, frozen=True):
    """The card was declined and the intent is cancelled: no money can move any more."""

    order_id: Name
    amount: Money
    currency: Currency
    reference: Reference
    decline_code: Reason

    def __post_init__(self) -> None:
        minor_units(self.amount, self.currency)


class PaymentVoided(Struct, frozen=True):
    """The door is closed before money moved."""

    order_id: Name
    reference: Reference


class PaymentRefunded(Struct, frozen=True):
    """The money of a cancelled order went back whole."""

    order_id: Name
    amount: Money
    currency: Currency
    reference: Reference

    def __post_init__(self) -> None:
        minor_units(self.amount, self.currency)


class RefundIssued(Struct, frozen=True):
    """An operator gave money back; the order stays as it is."""

    order_id: Name
    amount: Money
    currency: Currency
    reference: Reference

    def __post_init__(self) -> None:
        minor_units(self.amount, self.currency)


class NotificationSent(Struct, frozen=True):
    """The customer was told."""

    order_id: Name
    channel: Reason
    template: Reason
    recipient_hash: Reason


class NotificationFailed(Struct, frozen=True):
    """The customer could not be told, and trying again would not help."""

    order_id: Name
    channel: Reason
    template: Reason
    recipient_hash: Reason
    reason: Reason


def _check_order(order: OrderCreated | StockReserved) -> None:
    """Refuse, wherever it comes from, an order that could not be charged exactly."""
    currency = order.currency or CURRENCY_DEFAULT
    if minor_units(order.amount, currency) < 1:
        raise ValueError("an amount must be at least 1 minor unit")
    for item in order.items or ():
        minor_units(item.unit_price, currency)


# Who says what, and where: owner -> stream, and the subject of each type.
OWNERS: Final[Mapping[str, tuple[str, Mapping[type[Struct], str]]]] = {
    "orders": (
        "ORDERS",
        {
            OrderCreated: "orders.created",
            OrderCancellationRequested: "orders.cancellation_requested",
            OrderConfirmed: "orders.confirmed",
            OrderRejected: "orders.rejected",
            OrderCancelled: "orders.cancelled",
        },
    ),
    "inventory": (
        "INVENTORY",
        {
            StockReserved: "inventory.reserved",
            StockRejected: "inventory.rejected",
            StockCommitted: "inventory.committed",
            StockReleased: "inventory.released",
            StockAdjusted: "inventory.adjusted",
        },
    ),
    "payments": (
        "PAYMENTS",
        {
            PaymentSucceeded: "payments.succeeded",
            PaymentFailed: "payments.failed",
            PaymentVoided: "payments.voided",
            PaymentRefunded: "payments.refunded",
            RefundIssued: "payments.refund_issued",
        },
    ),
    "notifications": (
        "NOTIFICATIONS",
        {
            NotificationSent: "notifications.sent",
            NotificationFailed: "notifications.failed",
        },
    ),
}

SUBJECTS: Final[Mapping[type[Struct], str]] = {
    kind: subject for _, kinds in OWNERS.values() for kind, subject in kinds.items()
}
KINDS: Final[Mapping[str, type[Struct]]] = {subject: kind for kind, subject in SUBJECTS.items()}

STREAMS: Final = (
    *(Stream(name, owner, tuple(kinds.values())) for owner, (name, kinds) in OWNERS.items()),
    DEAD_LETTER_STREAM,
)


def subjects_of(owner: str) -> dict[str, str]:
    """Where each type that `owner` emits goes, by the type's name."""
    return {kind.__name__: subject for kind, subject in OWNERS[owner][1].items()}


def durable(service: str, stream: str, kinds: Iterable[type[Struct]] = ()) -> Durable:
    """Declare a service's place in a stream, for these types or for everything."""
    wanted = tuple(SUBJECTS[kind] for kind in kinds)
    whole = next(each.subjects for each in STREAMS if each.name == stream)
    return Durable(service, stream, wanted or whole)


def kinds_of(declared: Durable) -> dict[str, type[Struct]]:
    """The struct for each subject that a consumer takes."""
    return {subject: KINDS[subject] for subject in declared.subjects}


def aggregate_of(data: Any) -> str:
    """The aggregate that an event is about: the order, or the SKU that was adjusted."""
    name: str = data.sku if isinstance(data, StockAdjusted) else data.order_id
    return name


# One fewer than the largest amount has: so many digits are never too much.
_USUAL_DIGITS_MAX: Final = len(str(AMOUNT_MINOR_UNITS_MAX)) - 1


def minor_units(amount: Decimal, currency: str) -> int:
    """Turn an amount into minor units, exactly.

    Raises `ValueError` for an unknown currency, an amount that is not finite, has an exponent, has
    more decimals than the currency, or lies outside 0 to `AMOUNT_MINOR_UNITS_MAX`.
    """
    decimals = CURRENCIES.get(currency)
    if decimals is None:
        raise ValueError(f"currency must be one of {', '.join(CURRENCIES)}")
    # As nearly all are written; digits alone cost a fifth of decimal's own arithmetic.
    whole, _, rest = str(amount).partition(".")
    digits_alone = whole + rest
    if (
        len(rest) == decimals
        and len(digits_alone) <= _USUAL_DIGITS_MAX
        and digits_alone.isdecimal()
    ):
        return int(digits_alone)
    _, digits, exponent = amount.as_tuple()
    plain = isinstance(exponent, int) and -AMOUNT_DIGITS_MAX <= exponent <= 0
    if not plain or len(digits) > AMOUNT_DIGITS_MAX:
        raise ValueError("an amount must be a plain decimal number")
    if abs(amount) > AMOUNT_MINOR_UNITS_MAX:
        raise ValueError(f"an amount must be at most {AMOUNT_MINOR_UNITS_MAX} minor units")
    scaled = amount.scaleb(decimals)
    if scaled != scaled.to_integral_value():
        raise ValueError(f"{currency} has {decimals} decimals")
    units = int(scaled)
    if not 0 <= units <= AMOUNT_MINOR_UNITS_MAX:
        raise ValueError(f"an amount must be 0 to {AMOUNT_MINOR_UNITS_MAX} minor units")
    return units


def money(units: int, currency: str) -> Decimal:
    """Turn minor units into the amount that travels, with the currency's decimals."""
    return Decimal(units).scaleb(-CURRENCIES[currency])
