"""What payments decides: the table, charging, refunds, webhooks, and agreeing with the gateway."""

from ironcart.services.payments.handlers.charging import Charging
from ironcart.services.payments.handlers.table import (
    EVENTS,
    JOBS,
    TABLE,
    OperatorRefundAsked,
    learn,
    step,
)
from ironcart.services.payments.handlers.take import take_orders

__all__ = [
    "EVENTS",
    "JOBS",
    "TABLE",
    "Charging",
    "OperatorRefundAsked",
    "learn",
    "step",
    "take_orders",
]
