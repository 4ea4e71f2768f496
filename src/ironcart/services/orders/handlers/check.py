"""Read the body of POST /orders: exact money, and every fault at once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from ironcart.events import (
    AMOUNT_MINOR_UNITS_MAX,
    CURRENCIES,
    LINES_MAX,
    QUANTITY_MAX,
    Item,
    Quantity,
    minor_units,
    money,
)
from ironcart.toolkit.envelope import NAME_PATTERN, Name
from ironcart.toolkit.http import Fault
from ironcart.toolkit.vault import Contact

EMAIL_CHARACTERS_MAX = 254
LOCAL_PART_BYTES_MAX = 64
PAYMENT_METHOD_PATTERN = r"^[A-Za-z0-9_]{1,255}\Z"
# What mail can be sent to; a local part may be international.
EMAIL_PATTERN = (
    r'^[^\s\x00-\x20\x7f-\x9f<>()\[\],;:\\"@]{1,64}'
    r"@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}\Z"
)
PERSON_PATTERN = r"^[^\x00-\x1f\x7f]{1,200}\Z"
# A JSON number as it was written, without an exponent: floats never see money.
_PLAIN_NUMBER = re.compile(rb"-?(0|[1-9][0-9]*)(\.[0-9]+)?\Z")
MISSING = "is missing"


CurrencyCode = Annotated[str, Meta(extra_json_schema={"enum": list(CURRENCIES)})]
_EXACT = "exact, with at most the currency's decimals"
_PRICES = {"minimum": 0, "maximum": AMOUNT_MINOR_UNITS_MAX}
_AMOUNTS = {"exclusiveMinimum": 0, "maximum": AMOUNT_MINOR_UNITS_MAX}


class PostItem(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of an order, as a storefront sends it."""

    sku: Name
    quantity: Quantity
    unit_price: Annotated[Decimal, Meta(description=_EXACT, extra_json_schema=_PRICES)]


class PostOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """An order, as a storefront sends it: these structs document what `check` accepts."""

    customer_id: Name
    items: Annotated[list[PostItem], Meta(min_length=1, max_length=LINES_MAX)]
    currency: CurrencyCode | UnsetType = UNSET
    amount: (
        Annotated[
            Decimal,
            Meta(description="what the items come to; may be left out", extra_json_schema=_AMOUNTS),
        ]
        | UnsetType
    ) = UNSET
    email: (
        Annotated[str, Meta(pattern=EMAIL_PATTERN, max_length=EMAIL_CHARACTERS_MAX)] | UnsetType
    ) = UNSET
    name: Annotated[str, Meta(pattern=PERSON_PATTERN)] | UnsetType = UNSET
    payment_method: Annotated[str, Meta(pattern=PAYMENT_METHOD_PATTERN)] | UnsetType = UNSET


class Draft(Struct, frozen=True):
    """An order that is valid, and not yet anybody's."""

    customer_id: str
    currency: str
    amount_minor: int
    items: tuple[Item, ...]
    payment_method: str | None
    contact: Contact | None


@dataclass(slots=True)
class _Checker:
    """Reads raw fields and gathers what is wrong with them."""

    faults: list[Fault] = field(default_factory=list)

    def wrong(self, pointer: str, detail: str) -> None:
        self.faults.append(Fault(pointer, detail))

    def read(self, fields: Mapping[str, Raw], name: str, at: str, kind: Any) -> Any:
        """Decode one field; None, and a fault, when it is something else."""
        try:
            return msgspec.json.decode(fields[name], type=kind)
        except msgspec.MsgspecError as error:
            self.wrong(f"{at}/{name}", str(error).partition(" - at")[0].lower())
            return None

    def text(self, fields: Mapping[str, Raw], name: str, pattern: str, want: str) -> str | None:
        """Read an optional string; what does not match is a fault."""
        if name not in fields:
            return None
        value: str | None = self.read(fields, name, "", str)
        if value is not None and not re.match(pattern, value):
            self.wrong(f"/{name}", want)
            return None
        return value

    def unknown(self, fields: Mapping[str, Raw], known: set[str], at: str) -> None:
        for name in fields.keys() - known:
            self.wrong(f"{at}/{_escaped(name)}", "is not a field of an order; leave it out")

    def minor(self, fields: Mapping[str, Raw], name: str, at: str, currency: str) -> int | None:
        """Read money exactly."""
        written = bytes(fields[name])
        if not _PLAIN_NUMBER.match(written):
            self.wrong(f"{at}/{name}", "use a plain JSON number, such as 19.99")
            return None
        try:
            return minor_units(Decimal(written.decode()), currency)
        except ValueError as error:
            self.wrong(f"{at}/{name}", str(error))
            return None


def check(body: bytes, *, currency: str) -> Draft | list[Fault]:
    """Read an order; returns it, or everything that is wrong with it.

    `currency` is used when the body names none. Raises `msgspec.DecodeError` when it is not JSON.
    """
    return read_usual(body, currency) or read_carefully(body, currency)


class _UsualItem(PostItem, frozen=True, forbid_unknown_fields=True):
    """Money is read from what was written: a string of digits would pass for a number else."""

    unit_price: Raw  # type: ignore[assignment]


class _UsualOrder(PostOrder, frozen=True, forbid_unknown_fields=True):
    items: Annotated[list[_UsualItem], Meta(min_length=1, max_length=LINES_MAX)]  # type: ignore[assignment]
    amount: Raw | UnsetType = UNSET  # type: ignore[assignment]


_orders = msgspec.json.Decoder(_UsualOrder)


def _units(raw: Raw, currency: str) -> int:
    written = bytes(raw)
    if not _PLAIN_NUMBER.match(written):
        raise ValueError("not a plain number")
    return minor_units(Decimal(written.decode()), currency)


def read_usual(body: bytes, currency: str) -> Draft | None:
    """Read an order in which nothing is wrong, in half the time; None when it is another."""
    items, total = [], 0
    try:
        order = _orders.decode(body)
        used = currency if order.currency is UNSET else order.currency
        for item in order.items:
            price = _units(item.unit_price, used)
            total += price * item.quantity
            items.append(Item(item.sku, item.quantity, money(price, used)))
        amount = None if order.amount is UNSET else _units(order.amount, used)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if not 1 <= total <= AMOUNT_MINOR_UNITS_MAX or amount not in (None, total):
        return None
    contact = None
    if order.email is not UNSET:
        if not _can_be_mailed(order.email):
            return None
        contact = Contact(order.email, "" if order.name is UNSET else order.name)
    method = None if order.payment_method is UNSET else order.payment_method
    return Draft(order.customer_id, used, total, tuple(items), method, contact)


def read_carefully(body: bytes, currency: str) -> Draft | list[Fault]:
    """Read an order field by field, so that each fault is named: as `check`."""
    checker = _Checker()
    try:
        fields = msgspec.json.decode(body, type=dict[str, Raw])
    except msgspec.ValidationError:
        return [Fault("", "must be a JSON object")]
    checker.unknown(fields, set(PostOrder.__struct_fields__), "")
    customer = "customer_id"
    customer_id = checker.text(fields, customer, NAME_PATTERN, "use 1 to 64 of A-Z a-z 0-9 . _ -")
    if customer not in fields:
        checker.wrong(f"/{customer}", MISSING)
    currencies = f"^({'|'.join(CURRENCIES)})\\Z"
    named = checker.text(fields, "currency", currencies, f"use one of {', '.join(CURRENCIES)}")
    used = named or currency
    items, total = _items(checker, fields, used)
    _agree(checker, fields, total, used)
    email = checker.text(fields, "email", EMAIL_PATTERN, "is not a mail address")
    if email and not _can_be_mailed(email):
        checker.wrong("/email", "is not a mail address")
    name = checker.text(fields, "name", PERSON_PATTERN, "use 1 to 200 printable characters")
    method = checker.text(
        fields,
        "payment_method",
        PAYMENT_METHOD_PATTERN,
        "use a payment method's id, as pm_card_visa",
    )
    if checker.faults:
        return sorted(checker.faults, key=lambda fault: fault.pointer)
    assert customer_id is not None
    contact = Contact(email, name or "") if email else None
    return Draft(customer_id, used, total, items, method, contact)


def _items(
    checker: _Checker, fields: Mapping[str, Raw], currency: str
) -> tuple[tuple[Item, ...], int]:
    if "items" not in fields:
        checker.wrong("/items", MISSING)
        return (), 0
    written: list[Raw] | None = checker.read(fields, "items", "", list[Raw])
    if written is None:
        return (), 0
    if not 1 <= len(written) <= LINES_MAX:
        checker.wrong("/items", f"use 1 to {LINES_MAX} lines")
        return (), 0
    found = [_item(checker, raw, f"/items/{at}", currency) for at, raw in enumerate(written)]
    total = sum(units for _, units in found)
    if not checker.faults and not 1 <= total <= AMOUNT_MINOR_UNITS_MAX:
        checker.wrong("/items", f"must come to 1 to {AMOUNT_MINOR_UNITS_MAX} minor units")
    return tuple(item for item, _ in found if item is not None), total


def _item(checker: _Checker, raw: Raw, at: str, currency: str) -> tuple[Item | None, int]:
    try:
        fields = msgspec.json.decode(raw, type=dict[str, Raw])
    except msgspec.ValidationError:
        checker.wrong(at, "must be an object")
        return None, 0
    checker.unknown(fields, set(PostItem.__struct_fields__), at)
    for name in PostItem.__struct_fields__:
        if name not in fields:
            checker.wrong(f"{at}/{name}", MISSING)
    sku = checker.read(fields, "sku", at, str) if "sku" in fields else None
    if sku is not None and not re.match(NAME_PATTERN, sku):
        checker.wrong(f"{at}/sku", "use 1 to 64 of A-Z a-z 0-9 . _ -")
    quantity = checker.read(fields, "quantity", at, int) if "quantity" in fields else None
    if quantity is not None and not 1 <= quantity <= QUANTITY_MAX:
        checker.wrong(f"{at}/quantity", f"use a whole number from 1 to {QUANTITY_MAX}")
    price = checker.minor(fields, "unit_price", at, currency) if "unit_price" in fields else None
    if sku is None or quantity is None or price is None:
        return None, 0
    return Item(sku, quantity, money(price, currency)), price * quantity


def _can_be_mailed(email: str) -> bool:
    """Whether an address that looks like one also keeps within the lengths that mail allows."""
    local_bytes = len(email.partition("@")[0].encode())
    short = len(email) <= EMAIL_CHARACTERS_MAX and local_bytes <= LOCAL_PART_BYTES_MAX
    return short and email.isprintable()


def _agree(checker: _Checker, fields: Mapping[str, Raw], total: int, currency: str) -> None:
    """An amount may be sent, and must then be what the lines come to."""
    if "amount" not in fields:
        return
    amount = checker.minor(fields, "amount", "", currency)
    if amount is not None and not checker.faults and amount != total:
        checker.wrong("/amount", f"the items come to {money(total, currency)}")


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")[:64]
