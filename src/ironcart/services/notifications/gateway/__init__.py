"""Mail: letters written from templates, and a mail server they are handed to."""

from ironcart.services.notifications.gateway.letters import (
    Letter,
    Recipient,
    Stationery,
    UnusableAddress,
    hash_key,
    recipient_hash,
)
from ironcart.services.notifications.gateway.mailer import Mailer, Refusal, mail_server

__all__ = [
    "Letter",
    "Mailer",
    "Recipient",
    "Refusal",
    "Stationery",
    "UnusableAddress",
    "hash_key",
    "mail_server",
    "recipient_hash",
]
