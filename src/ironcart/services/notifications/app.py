"""Notifications, put together."""

import asyncio
from functools import partial

from msgspec import Struct

from ironcart.events import (
    OrderCancelled,
    OrderConfirmed,
    OrderRejected,
    aggregate_of,
    durable,
    kinds_of,
    subjects_of,
)
from ironcart.services.notifications.api import notices, webhooks
from ironcart.services.notifications.fold import MEMORY
from ironcart.services.notifications.gateway import (
    CALLERS_MAX,
    LETTERS_AT_ONCE_MAX,
    Mailer,
    SecretBox,
    Stationery,
    Webhooks,
    hash_key,
    mail_server,
)
from ironcart.services.notifications.handlers.intake import take_in
from ironcart.services.notifications.handlers.keys import MAIL_JOBS, WEBHOOK_JOBS
from ironcart.services.notifications.handlers.mail import NoticeJobs, Telling
from ironcart.services.notifications.handlers.webhooks import Delivering, WebhookJobs
from ironcart.toolkit.breakers import SharedBreaker
from ironcart.toolkit.collector import Collector
from ironcart.toolkit.database import Database
from ironcart.toolkit.lifecycle import Service, Wiring
from ironcart.toolkit.loop import Chassis, Subscription
from ironcart.toolkit.outcomes import Poison
from ironcart.toolkit.vault import Contact, Vault, key_ring

NAME = "notifications"
ORDERS = durable(NAME, "ORDERS", (OrderConfirmed, OrderRejected, OrderCancelled))
VAULT_CONNECTIONS_MAX = 2
CONTACTS_AT_ONCE_MAX = 500


class Settings(Struct, frozen=True, kw_only=True):
    """The vault, the mail server, who writes, and whether webhooks may stay in the house."""

    vault_database_url: str
    master_key: str
    master_keys_old: str = ""
    smtp_url: str
    mail_from: str = "orders@ironcart.example"
    webhooks_allow_private: bool = False

    def __post_init__(self) -> None:
        try:
            mail_server(self.smtp_url)
        except ValueError as error:
            raise ValueError(f"IRONCART_SMTP_URL: {error}") from error
        try:
            Stationery(self.mail_from)
        except ValueError as error:
            raise ValueError(f"IRONCART_MAIL_FROM: {error}") from error


def build(chassis: Chassis, settings: Settings, _draining: asyncio.Event) -> Wiring:
    """Wire notifications."""
    keys = Database(
        settings.vault_database_url,
        "vault",
        f"{NAME}/vault",
        connections_max=VAULT_CONNECTIONS_MAX,
    )
    master_keys = key_ring(settings.master_key, settings.master_keys_old)
    vault = Vault(keys, *master_keys)
    # Mails are written one by one, but the keys to their contacts are read together.
    contacts: Collector[tuple[str, str], Contact | Poison] = Collector(
        vault.decrypt, batch_max=CONTACTS_AT_ONCE_MAX
    )
    stationery = Stationery(settings.mail_from)
    mailer = Mailer(mail_server(settings.smtp_url), stationery.sender)
    mails: NoticeJobs = NoticeJobs(
        Telling(mailer, stationery, contacts.submit, hash_key(master_keys[0])),
        chassis.database,
        chassis.history,
        chassis.outbox,
        closed_for_s=mailer.breaker.wait_s,
        only=MAIL_JOBS,
        calls_max=LETTERS_AT_ONCE_MAX,
    )
    private = settings.webhooks_allow_private
    posting, box = Webhooks(allow_private=private), SecretBox(*master_keys)
    deliveries: WebhookJobs = WebhookJobs(
        Delivering(posting, box),
        chassis.database,
        chassis.history,
        chassis.outbox,
        only=WEBHOOK_JOBS,
        calls_max=CALLERS_MAX,
    )
    handle = partial(take_in, mails=mails, deliveries=deliveries)
    return Wiring(
        endpoints=[
            *notices.endpoints(chassis.database),
            *webhooks.endpoints(chassis.database, deliveries, box, allow_private=private),
        ],
        subscriptions=[Subscription(ORDERS, kinds_of(ORDERS), aggregate_of, handle)],
        loops=[mails, deliveries, SharedBreaker(mailer.breaker, chassis.database)],
        background=[contacts.run, vault.watch],
        close=[posting.close, mailer.close, keys.close],
    )


TABLES = {
    "notifications": "SELECT, INSERT, UPDATE",
    "webhook_endpoints": "SELECT, INSERT, UPDATE, DELETE",
    "vault.keys": "SELECT",
}
SERVICE = Service(NAME, subjects_of(NAME), (ORDERS,), Settings, build, MEMORY, TABLES)
