"""Notifications' decisions: what to tell whom, and what came of it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from ironcart.events import (
    NotificationFailed,
    NotificationSent,
    OrderCancelled,
    OrderConfirmed,
    OrderRejected,
    minor_units,
    money,
)
from ironcart.services.notifications.gateway import (
    Mailer,
    Recipient,
    Stationery,
    UnusableAddress,
    recipient_hash,
)
from ironcart.services.notifications.store import CHANNEL, Key, Notice, Store, Told
from ironcart.toolkit.database import Connection, Transaction
from ironcart.toolkit.jobs import Jobs, Settled
from ironcart.toolkit.loop import Message
from ironcart.toolkit.outcomes import Done, Fact, Outcome, Poison
from ironcart.toolkit.vault import Contact, Forgotten

TEMPLATES: Final[Mapping[type[Struct], str]] = {
    OrderConfirmed: "confirmed",
    OrderRejected: "rejected",
    OrderCancelled: "cancelled",
}
# Why a customer was not told, for good.
NO_CONTACT: Final = "no_contact"
FORGOTTEN: Final = "forgotten"
UNREADABLE: Final = "unreadable_contact"
REFUSED: Final = "refused"

NoticeJobs = Jobs[Notice, Told]
ReadContact = Callable[[tuple[str, str]], Awaitable[Contact | Poison]]


def notice_of(message: Message) -> Notice:
    """What an order's end leads to."""
    data: OrderConfirmed | OrderRejected | OrderCancelled = message.data
    units = minor_units(data.amount, data.currency)
    return Notice(
        order_id=data.order_id,
        template=TEMPLATES[type(data)],
        customer_id=data.customer_id,
        amount=f"{money(units, data.currency):,f}",
        currency=data.currency,
        reason=data.reason,
        contact=data.contact,
        cause=message.cause,
    )


def fact_of(notice: Notice, told: Told, version: int) -> Fact:
    """What is to be said of a notification that has ended."""
    subject = (notice.order_id, CHANNEL, notice.template, told.recipient_hash)
    if told.reason is None:
        return Fact(notice.order_id, version, NotificationSent(*subject))
    return Fact(notice.order_id, version, NotificationFailed(*subject, told.reason))


def job_key(key: Key) -> str:
    """The job of a notification: `ORD-1/confirmed`."""
    return "/".join(key)


async def take_in(
    messages: Sequence[Message], transaction: Transaction, jobs: NoticeJobs
) -> list[Outcome]:
    """Note what is to be told, and a job for each; an order's end is told once."""
    notices: dict[Key, Notice] = {}
    for message in messages:
        notice = notice_of(message)
        notices.setdefault(notice.key, notice)
    added = await Store(transaction.connection).add(list(notices.values()))
    if added:
        payloads = {job_key(key): notice for key, notice in notices.items() if key in added}
        await jobs.add(transaction, payloads)
    return [Done() for _ in messages]


class Telling:
    """The work of a notification's job: tell the customer, and write down what came of it."""

    def __init__(
        self, mailer: Mailer, stationery: Stationery, read_contact: ReadContact, hash_key: bytes
    ) -> None:
        self._mailer, self._stationery = mailer, stationery
        self._read_contact, self._hash_key = read_contact, hash_key

    async def load(self, connection: Connection, keys: Sequence[str]) -> Mapping[str, Notice]:
        """Read what is still to be told."""
        split = [key.partition("/") for key in keys]
        due = await Store(connection).due([(order_id, template) for order_id, _, template in split])
        return {job_key(notice.key): notice for notice in due}

    async def call(self, payload: Notice, attempts: int) -> Told:
        """Send one mail; raises `Unavailable` when it has to be sent again."""
        del attempts  # A repeat is the same letter, under the same message id.
        if payload.contact is None:
            return Told("", None, NO_CONTACT)
        match await self._read_contact((payload.customer_id, payload.contact)):
            case Forgotten():
                return Told("", None, FORGOTTEN)
            case Contact(email=address, name=name):
                hashed = recipient_hash(self._hash_key, address)
            case _:
                return Told("", None, UNREADABLE)
        try:
            letter = self._stationery.write(
                payload.template,
                Recipient(address, name, hashed),
                order_id=payload.order_id,
                amount=f"{payload.amount} {payload.currency}",
                reason=payload.reason,
            )
        except UnusableAddress:
            return Told(hashed, None, UNREADABLE)
        refusal = await self._mailer.send(letter)
        return Told(hashed, letter.message_id, None if refusal is None else REFUSED)

    async def settle(
        self, connection: Connection, results: Sequence[tuple[Notice, Told]]
    ) -> list[Settled[Notice]]:
        """Write down what came of it, and say so."""
        if not results:
            return []
        store = Store(connection)
        order_ids = {notice.order_id for notice, _ in results}
        due = await store.lock_orders(order_ids)
        versions = await store.versions(order_ids)
        settled: list[Settled[Notice]] = []
        for notice, told in results:
            if notice.key in due:
                version = versions[notice.order_id] = versions.get(notice.order_id, 0) + 1
                settled.append(Settled((fact_of(notice, told, version),), notice.cause))
            else:
                settled.append(Settled())
        if ended := [(notice.key, told) for notice, told in results if notice.key in due]:
            await store.settle(ended)
        return settled
