"""Reading events, order bodies and money as they are on the wire, exactly and without trust."""

import hashlib
import json
import re
import uuid
from collections.abc import Iterable
from decimal import Decimal
from sys import intern
from typing import Any

from ironcart.verify.facts import Event, Lines, Money

EXPONENTS = {"EUR": 2, "USD": 2, "GBP": 2, "CHF": 2, "SEK": 2, "JPY": 0}
TEXT_CHARACTERS_MAX = 128
ID_BYTES = 16
UUID_CHARACTERS = 36
DIGITS_MAX = 24
# Why stock was adjusted when a restored database proved that an adjustment had been lost.
MADE_GOOD = "recovered"


class MalformedError(ValueError):
    """Text is not what the contract says; the message names the field."""


def key_of(text: str) -> bytes:
    """Return 16 bytes that stand for an event id, whether or not it is a UUID."""
    if not text:
        return b""
    try:
        if len(text) == UUID_CHARACTERS:
            # The usual form, ten times faster; anything that is not quite it goes the long way.
            key = bytes.fromhex(text.replace("-", ""))
            if len(key) == ID_BYTES:
                return key
        return uuid.UUID(text).bytes
    except ValueError:
        return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=ID_BYTES).digest()


def show_id(key: bytes) -> str:
    """Return an event id for a person to read."""
    return str(uuid.UUID(bytes=key)) if len(key) == ID_BYTES else "(no id)"


def loads(body: bytes | str) -> Any:
    """Parse JSON with exact numbers; NaN and Infinity are refused with `ValueError`."""
    return _decoder.decode(body if isinstance(body, str) else body.decode())


def minor(amount: Any, currency: str) -> int:
    """Return an amount in the currency's minor units; raises `MalformedError` unless exact."""
    if currency not in EXPONENTS:
        raise MalformedError(f"currency {currency!r}")
    if isinstance(amount, bool) or not isinstance(amount, int | Decimal):
        raise MalformedError(f"amount {amount!r}")
    scaled = Decimal(amount).scaleb(EXPONENTS[currency])
    if scaled.adjusted() > DIGITS_MAX:
        raise MalformedError(f"amount {amount} is absurd")
    if scaled != scaled.to_integral_value():
        raise MalformedError(f"amount {amount} has too many decimals")
    return int(scaled)


def lines_of(items: Any) -> Lines:
    """Return the quantities by SKU, sorted; equal SKUs add up."""
    totals: dict[str, int] = {}
    for item in items or ():
        sku, quantity = item["sku"], item["quantity"]
        if not isinstance(sku, str) or isinstance(quantity, bool) or not isinstance(quantity, int):
            raise MalformedError("lines")
        totals[sku] = totals.get(sku, 0) + quantity
    return tuple((intern(sku), totals[sku]) for sku in sorted(totals))


def basket_of(customer_id: str, money: Money, items: Any) -> bytes:
    """Return a digest of who ordered what for how much, the same however lines are ordered."""
    amount, currency = money
    totals: dict[tuple[str, int], int] = {}
    for item in items or ():
        line = (item["sku"], minor(item["unit_price"], currency))
        totals[line] = totals.get(line, 0) + item["quantity"]
    text = json.dumps([customer_id, amount, currency, sorted(totals.items())])
    return hashlib.blake2b(text.encode(), digest_size=ID_BYTES).digest()


def basket_of_body(body: dict[str, Any]) -> bytes:
    """Return the basket of a `POST /orders` body; its amount is the sum of its lines."""
    currency = body["currency"]
    items = body["items"]
    amount = sum(minor(item["unit_price"], currency) * item["quantity"] for item in items)
    return basket_of(body["customer_id"], (amount, currency), items)


def read_event(stream: str, seq: int, subject: str, body: bytes) -> Event:
    """Decode one message as far as it can be decoded; never raises on bad bytes."""
    event = Event(stream, seq, intern(subject), hashlib.sha256(body).digest())
    try:
        fields = loads(body)
        # Looked for first, since it is rare and searching for the rest is slow.
        escaped = b"\\u" in body
        if escaped and _HALF.search(body):
            # Half of a surrogate pair is no text in UTF-8: raises UnicodeEncodeError.
            json.dumps(fields, ensure_ascii=False, default=str).encode()
    except (ValueError, RecursionError):
        return event
    if not isinstance(fields, dict):
        return event
    if _is_text(fields.get("id")) and "\0" not in fields["id"]:
        event.id = key_of(fields["id"])
    # A database cannot hold NUL, so nobody takes in an event that spells one anywhere.
    usable = event.id and not (escaped and _NUL.search(body))
    named = usable and _is_name(fields.get("type")) and _is_name(fields.get("aggregate_id"))
    timed = _is_text(fields.get("timestamp"))
    if not named or not timed or not isinstance(fields.get("data"), dict):
        return event
    event.valid = True
    event.type = intern(fields["type"])
    event.aggregate = intern(fields["aggregate_id"])
    event.traced = _is_text(fields.get("trace_id"))
    version = fields.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > 0:
        event.version = version
    cause = fields.get("causation_id")
    if isinstance(cause, str):
        event.cause = key_of(cause)
    try:
        _read_data(event, fields["data"])
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        event.flaw = f"{event.type} data: {error!r}"
    return event


def _read_data(event: Event, data: dict[str, Any]) -> None:
    match event.type:
        case "OrderCreated":
            currency = data.get("currency", "EUR")
            event.money = (minor(data["amount"], currency), intern(currency))
            event.basket = basket_of(data["customer_id"], event.money, data.get("items"))
        case "StockReserved":
            event.lines = lines_of(data.get("items"))
        case "StockCommitted" | "StockReleased":
            event.lines = lines_of(data["lines"])
        case "StockAdjusted":
            if isinstance(data["delta"], bool) or not isinstance(data["delta"], int):
                raise MalformedError("delta")
            event.delta = data["delta"]
            event.made_good = data.get("reason") == MADE_GOOD
        case "RefundIssued":
            currency = data["currency"]
            event.money = (minor(data["amount"], currency), intern(currency))
        case "NotificationSent" | "NotificationFailed":
            # An order's end is told once by mail, and once to each endpoint of a webhook.
            endpoint = f"/{data['recipient_hash']}" if data["channel"] == "webhook" else ""
            event.notice = intern(f"{data['channel']}/{data['template']}{endpoint}")


def mentioned(events: Iterable[Event]) -> dict[bytes, Event]:
    """Return the first valid event of each id."""
    first: dict[bytes, Event] = {}
    for event in events:
        if event.valid:
            first.setdefault(event.id, event)
    return first


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= TEXT_CHARACTERS_MAX


def _is_name(value: Any) -> bool:
    return _is_text(value) and str.isprintable(value)


def _refuse(constant: str) -> None:
    raise MalformedError(f"{constant} is not a JSON number")


_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_decoder = json.JSONDecoder(parse_float=Decimal, parse_constant=_refuse)
