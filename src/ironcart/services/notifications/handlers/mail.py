"""Mail: the customer is told by letter, if there is an address that can be read."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from ironcart.services.notifications.gateway import (
    Mailer,
    Recipient,
    Stationery,
    UnusableAddress,
    recipient_hash,
)
from ironcart.services.notifications.handlers.keys import job_key, notice_key
from ironcart.services.notifications.handlers.settling import settle
from ironcart.services.notifications.store import Notice, Store, Told
from ironcart.toolkit.database import Connection
from ironcart.toolkit.jobs import Jobs, Settled
from ironcart.toolkit.outcomes import Poison
from ironcart.toolkit.vault import Contact, Forgotten

# Why a customer was not told, for good.
NO_CONTACT: Final = "no_contact"
FORGOTTEN: Final = "forgotten"
UNREADABLE: Final = "unreadable_contact"
REFUSED: Final = "refused"

NoticeJobs = Jobs[Notice, Told]
ReadContact = Callable[[tuple[str, str]], Awaitable[Contact | Poison]]


class Telling:
    """The work of a notification's job: tell the customer, and write down what came of it."""

    def __init__(
        self, mailer: Mailer, stationery: Stationery, read_contact: ReadContact, hash_key: bytes
    ) -> None:
        self._mailer, self._stationery = mailer, stationery
        self._read_contact, self._hash_key = read_contact, hash_key

    async def load(self, connection: Connection, keys: Sequence[str]) -> Mapping[str, Notice]:
        """Read what is still to be told."""
        due = await Store(connection).due([notice_key(key) for key in keys])
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
        return await settle(connection, results)
