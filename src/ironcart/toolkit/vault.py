"""Personal data as ciphertext: AES-256-GCM under a key per customer, wrapped by a master key.

The vault is the one thing that services share. Orders add and read keys, notifications read them.
Forgetting a customer is deleting one row: what was encrypted can then never be read again.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ironcart.toolkit.database import Database
from ironcart.toolkit.outcomes import Poison, Refused, Unavailable

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
WRAPPED_BYTES = NONCE_BYTES + KEY_BYTES + TAG_BYTES
CACHED_KEYS_MAX = 20_000
# Who is forgotten is read no longer than this, and who comes back later is written to again.
CACHED_KEY_LIFE_S = 5.0
# A key that is forgotten again and again while it is being made: once is rare enough.
MAKING_ATTEMPTS_MAX = 3
CONTACT_CHARACTERS_MAX = 4_096
# When a key does not open, so many of the newest others say whether it is damaged or a master key
# is missing, which the newest are wrapped by.
ASKED_KEYS_MAX = 20
WATCH_EVERY_S = 10.0
_MARKS = b"ironcart contact marks"


class Contact(msgspec.Struct, frozen=True, omit_defaults=True):
    """How to reach a customer; exists in the clear only in memory."""

    email: str
    name: str = ""

    def __repr__(self) -> str:
        return "Contact(…)"


class Sealed(NamedTuple):
    """A contact that may be kept: its ciphertext, and a mark that is the same for the same contact
    of a customer, and tells nothing without the customer's key."""

    text: str
    mark: bytes


class _Key(NamedTuple):
    cipher: AESGCM
    marks: bytes


class Forgotten(Poison):
    """The customer's key is gone: this contact can never be read again."""


class MasterKeys:
    """The keys that wrap customers' keys: the first makes what is new, any of them opens.

    What is wrapped does not say by which: trying two keys takes microseconds, and a name beside
    what it opens would have to be kept right through every change of keys.
    """

    def __init__(self, *master_keys: str) -> None:
        """Each is base64 of 32 bytes; raises `Refused` when one is not."""
        self._ciphers = [AESGCM(_key_bytes(each)) for each in master_keys]

    def wrap(self, customer: str, key: bytes) -> bytes:
        """Encrypt a customer's key under the first master key."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._ciphers[0].encrypt(nonce, key, customer.encode())

    def unwrap(self, customer: str, wrapped: bytes) -> tuple[bytes, bool]:
        """Decrypt a customer's key, and say whether the first master key did; raises `Refused`."""
        nonce, sealed = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, sealed, customer.encode()), cipher is self._ciphers[0]
            except (InvalidTag, ValueError):  # The latter, when it is too short to be anything.
                continue
        raise Refused(_NOT_OPENED)

    def opens(self, customer: str, wrapped: bytes) -> bool:
        """Whether any of them opens a customer's key."""
        with contextlib.suppress(Refused):
            self.unwrap(customer, wrapped)
            return True
        return False


class Vault:
    """Keys per customer, kept wrapped in the database and for seconds in memory."""

    def __init__(self, database: Database, *master_keys: str) -> None:
        """The first master key wraps, any of them opens."""
        self._database = database
        self._master = MasterKeys(*master_keys)
        self._cached: dict[str, tuple[float, _Key]] = {}

    async def lacking(self, customers: Collection[str]) -> set[str]:
        """Which of these have no key that can be used."""
        return set(customers) - (await self._opened(customers))[0].keys()

    async def seal(self, contacts: Sequence[tuple[str, Contact]]) -> list[Sealed | Poison]:
        """Encrypt contacts of customers in order, and mark each.

        A customer met for the first time gets a key; what has a key that does not open is `Poison`.
        """
        customers = {customer for customer, _ in contacts}
        keys, shut = await self._opened(customers)
        if shut:
            try:
                await self._told_as_damaged(shut)
            except Refused as error:
                structlog.get_logger().error(str(error), customers=[*shut])
        attempts = 0
        while missing := sorted(customers - keys.keys() - shut):
            if (attempts := attempts + 1) > MAKING_ATTEMPTS_MAX:
                raise Unavailable("vault: a key is gone as soon as it is made")
            await self._database.execute(
                "INSERT INTO keys (customer_id, wrapped) SELECT * FROM unnest($1::text[],"
                " $2::bytea[]) ON CONFLICT DO NOTHING",
                missing,
                [self._master.wrap(customer, os.urandom(KEY_BYTES)) for customer in missing],
            )
            made, also_shut = await self._opened(missing)
            keys, shut = keys | made, shut | also_shut
        drawn = os.urandom(NONCE_BYTES * len(contacts))  # At once: asking costs, not the bytes.
        nonces = (drawn[at : at + NONCE_BYTES] for at in range(0, len(drawn), NONCE_BYTES))
        return [
            _DAMAGED if customer in shut else _seal(keys[customer], nonce, customer, contact)
            for nonce, (customer, contact) in zip(nonces, contacts, strict=True)
        ]

    async def watch(self) -> None:
        """Look, now and then, whether keys open; raises `Refused` when a master key is missing.

        What this process would wrap meanwhile could not be opened by those who were told of the
        right one alone. The newest may be its own, so the oldest are looked at too: that none of
        those opens is said, and no more, for they may have been lost long ago.
        """
        told = False
        while True:
            with contextlib.suppress(Unavailable):
                newest, oldest = await self._opening(_NEWEST), await self._opening(_OLDEST)
                if newest and not any(newest):
                    raise Refused(_NOT_OPENED)
                if oldest and not any(oldest) and not told:
                    told = True
                    structlog.get_logger().error("The oldest keys do not open", error=_NOT_OPENED)
            await asyncio.sleep(WATCH_EVERY_S)

    async def decrypt(self, contacts: Sequence[tuple[str, str]]) -> list[Contact | Poison]:
        """Read `(customer, ciphertext)` pairs in order.

        What cannot be read is `Forgotten` when the key is gone, or another `Poison`, also when the
        key itself is damaged. Raises `Refused` when the newest keys of others do not open, either.
        """
        found = await self._read(contacts)
        # One who was forgotten and came back has another key than the one in memory.
        if doubtful := [
            at
            for at, (customer, _) in enumerate(contacts)
            if isinstance(found[at], Poison) and customer in self._cached
        ]:
            for at in doubtful:
                self._cached.pop(contacts[at][0], None)
            fresh = await self._read([contacts[at] for at in doubtful])
            for at, each in zip(doubtful, fresh, strict=True):
                found[at] = each
        return found

    async def _read(self, contacts: Sequence[tuple[str, str]]) -> list[Contact | Poison]:
        keys, shut = await self._opened({customer for customer, _ in contacts})
        if shut:
            await self._told_as_damaged(shut)
        return [
            _DAMAGED if customer in shut else _open(keys.get(customer), customer, sealed)
            for customer, sealed in contacts
        ]

    async def _told_as_damaged(self, shut: Collection[str]) -> None:
        """Log whose keys do not open; raises `Refused` when rather a master key is missing."""
        if not any(await self._opening(_NEWEST, shut)):
            raise Refused(_NOT_OPENED)
        structlog.get_logger().error("Keys of customers are damaged", customers=[*shut])

    async def _opening(self, query: str, but: Collection[str] = ()) -> list[bool]:
        """Of the newest or oldest keys, but for what is too short or long for one, which open."""
        rows = await self._database.fetch(query, sorted(but), ASKED_KEYS_MAX, WRAPPED_BYTES)
        return [self._master.opens(row["customer_id"], row["wrapped"]) for row in rows]

    async def _opened(self, customers: Collection[str]) -> tuple[dict[str, _Key], set[str]]:
        """The keys of these customers, and whose no master key opens."""
        now, shut = time.monotonic(), set[str]()
        known = {
            customer: entry[1]
            for customer in customers
            if (entry := self._cached.get(customer)) and entry[0] > now
        }
        if wanted := [customer for customer in customers if customer not in known]:
            rows = await self._database.fetch(
                "SELECT customer_id, wrapped FROM keys WHERE customer_id = ANY($1::text[])", wanted
            )
            if len(self._cached) + len(rows) > CACHED_KEYS_MAX:
                self._cached.clear()
            for row in rows:
                try:
                    raw, _ = self._master.unwrap(row["customer_id"], row["wrapped"])
                    key = _Key(AESGCM(raw), hmac.digest(raw, _MARKS, hashlib.sha256))
                except (Refused, ValueError):  # The latter, when it is no key's length.
                    shut.add(row["customer_id"])
                    continue
                known[row["customer_id"]] = key
                self._cached[row["customer_id"]] = (now + CACHED_KEY_LIFE_S, key)
        return known, shut


def key_ring(master_key: str, others: str) -> tuple[str, ...]:
    """The master keys as settings hold them: the one that wraps, and others with commas."""
    return master_key, *(each.strip() for each in others.split(",") if each.strip())


def new_master_key() -> str:
    """Draw a master key as the environment holds it: 32 random bytes in base64."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def _key_bytes(master_key: str) -> bytes:
    try:
        key = base64.b64decode(master_key, validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise Refused("IRONCART_MASTER_KEY, and each old one, must be 32 bytes in base64")
    return key


def _seal(key: _Key, nonce: bytes, customer: str, contact: Contact) -> Sealed:
    clear = msgspec.json.encode(contact)
    sealed = nonce + key.cipher.encrypt(nonce, clear, customer.encode())
    mark = hmac.digest(key.marks, clear, hashlib.sha256)
    return Sealed(base64.b64encode(sealed).decode(), mark)


def _open(key: _Key | None, customer: str, sealed: str) -> Contact | Poison:
    if key is None:
        return Forgotten("the customer was forgotten")
    try:
        raw = base64.b64decode(sealed, validate=True)
        clear = key.cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], customer.encode())
        return msgspec.json.decode(clear, type=Contact)
    except (binascii.Error, InvalidTag, ValueError, msgspec.MsgspecError):
        return Poison("the contact cannot be read with the customer's key")


_DAMAGED = Poison("the customer's key is damaged")
_NOT_OPENED = (
    "IRONCART_MASTER_KEY does not open the vault: use the key it was made with, or add that one to"
    " IRONCART_MASTER_KEYS_OLD"
)
_OLDEST = """
SELECT customer_id, wrapped FROM keys
WHERE customer_id <> ALL($1::text[]) AND length(wrapped) = $3 ORDER BY created_at LIMIT $2
"""
_NEWEST = _OLDEST.replace("created_at", "created_at DESC")
