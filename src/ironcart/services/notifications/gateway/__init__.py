"""Mail and webhooks: letters and the mail server they are handed to; signed calls to strangers."""

from ironcart.services.notifications.gateway.addresses import may_be_called
from ironcart.services.notifications.gateway.letters import (
    Letter,
    Recipient,
    Stationery,
    UnusableAddress,
    hash_key,
    message_id_of,
    recipient_hash,
)
from ironcart.services.notifications.gateway.mailer import (
    LETTERS_AT_ONCE_MAX,
    Mailer,
    Refusal,
    mail_server,
)
from ironcart.services.notifications.gateway.signatures import (
    SECRET_PATTERN,
    SecretBox,
    new_secret,
    read_secret,
    write_secret,
)
from ironcart.services.notifications.gateway.webhooks import CALLERS_MAX, Webhooks

__all__ = [
    "CALLERS_MAX",
    "LETTERS_AT_ONCE_MAX",
    "SECRET_PATTERN",
    "Letter",
    "Mailer",
    "Recipient",
    "Refusal",
    "SecretBox",
    "Stationery",
    "UnusableAddress",
    "Webhooks",
    "hash_key",
    "mail_server",
    "may_be_called",
    "message_id_of",
    "new_secret",
    "read_secret",
    "recipient_hash",
    "write_secret",
]
