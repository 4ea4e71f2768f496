"""Reading a message: what it is, whom it is about, and whether it is what it says."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from ironcart.toolkit import telemetry
from ironcart.toolkit.broker import Delivery
from ironcart.toolkit.deadletters import UNKNOWN_TYPE
from ironcart.toolkit.envelope import Envelope, Name, decode, decode_data, event_id
from ironcart.toolkit.history import Cause
from ironcart.toolkit.loop.subscriptions import Message
from ironcart.toolkit.outcomes import Poison


class _Loose(Struct):
    aggregate_id: Name


_loose = msgspec.json.Decoder(_Loose)


def read(
    delivery: Delivery, kinds: Mapping[str, type[Struct]], aggregate_of: Callable[[Any], str]
) -> Message:
    """Read an event as a subscription takes it; raises `Poison` with the reason."""
    envelope = decode(delivery.body)
    kind = kinds.get(delivery.subject)
    if kind is None or kind.__name__ != envelope.type:
        known = {known.__name__ for known in kinds.values()}
        what = "does not belong on" if envelope.type in known else "is unknown on"
        raise Poison(f"type {envelope.type[:64]!r} {what} {delivery.subject}")
    data = decode_data(envelope, {envelope.type: kind})
    if aggregate_of(data) != envelope.aggregate_id:
        raise Poison("aggregate_id is not what the data is about")
    context = telemetry.context(delivery.headers, envelope.trace_id)
    cause = Cause(envelope.trace_id, context, envelope.id)
    return Message(envelope.key, envelope, data, delivery, cause)


def is_told_by(owner: str, body: bytes) -> bool:
    """Whether a message is an event of this owner's own history: then its id says so."""
    envelope = envelope_of(body)
    if envelope is None or not isinstance(envelope.version, int):
        return False
    return envelope.id == str(event_id(owner, envelope.aggregate_id, envelope.version))


def envelope_of(body: bytes) -> Envelope | None:
    """Read the envelope alone, if there is one."""
    try:
        return decode(body)
    except Poison:
        return None


def aggregate_in(body: bytes) -> str:
    """Whom a message that is no event is about, where it says so; else nobody."""
    try:
        return _loose.decode(body).aggregate_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def kind_of(delivery: Delivery, kinds: Mapping[str, type[Struct]]) -> str:
    """The type of a message as dead letters name it: never text of the message's own."""
    kind, envelope = kinds.get(delivery.subject), envelope_of(delivery.body)
    fits = kind is not None and envelope is not None and kind.__name__ == envelope.type
    return envelope.type if fits and envelope is not None else UNKNOWN_TYPE
