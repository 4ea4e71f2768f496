"""What notifications keeps: one method is one statement, for a whole batch."""

from ironcart.services.notifications.store.endpoints import EndpointStore, WebhookEndpoint
from ironcart.services.notifications.store.notices import (
    MAIL,
    WEBHOOK,
    Key,
    Notice,
    Row,
    Store,
    Told,
)

__all__ = [
    "MAIL",
    "WEBHOOK",
    "EndpointStore",
    "Key",
    "Notice",
    "Row",
    "Store",
    "Told",
    "WebhookEndpoint",
]
