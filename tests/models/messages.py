"""Messages as the loop hands them to handlers, without a broker."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from msgspec import Raw

from ironcart.toolkit.broker import Delivery
from ironcart.toolkit.envelope import Envelope
from ironcart.toolkit.history import Cause
from ironcart.toolkit.loop import Message
from ironcart.toolkit.telemetry import TraceContext

ORDER = "ORD-1"
TRACE = TraceContext("0" * 32, "1" * 16)


def message(event: Any) -> Message:
    """The one delivery of an event about `ORDER`."""
    envelope = Envelope(
        id=str(UUID(int=1)),
        type=type(event).__name__,
        aggregate_id=ORDER,
        data=Raw(b"{}"),
        timestamp=datetime(2026, 11, 21, tzinfo=UTC),
        trace_id="t",
    )
    delivery = Delivery("S", 1, "s", b"", {}, 1, 0.0, "")
    return Message(UUID(int=1), envelope, event, delivery, Cause("t", TRACE))
