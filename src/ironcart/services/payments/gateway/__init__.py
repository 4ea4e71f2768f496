"""Stripe: what it can be asked, what it can say, and whether a webhook is its own."""

from ironcart.services.payments.gateway.charges import Gateway
from ironcart.services.payments.gateway.replies import (
    Canceled,
    Created,
    Declined,
    Found,
    OperatorRefunded,
    Refunded,
    Reply,
    Seen,
    Succeeded,
    Swept,
)
from ironcart.services.payments.gateway.signature import is_signed

__all__ = [
    "Canceled",
    "Created",
    "Declined",
    "Found",
    "Gateway",
    "OperatorRefunded",
    "Refunded",
    "Reply",
    "Seen",
    "Succeeded",
    "Swept",
    "is_signed",
]
