"""Personal data as ciphertext: AES-256-GCM under a key per customer, wrapped by the master key.

The vault is the one thing that services share. Orders add and read keys, notifications read them.
Forgetting a customer is deleting one row: what was encrypted can then never be read again.
"""

import base64
import binascii
import os
import time
from collections.abc import Collection, Sequence

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ironcart.toolkit.database import Database
from ironcart.toolkit.outcomes import Poison, Refused

KEY_BYTES = 32
NONCE_BYTES = 12
CACHED_KEYS_MAX = 20_000
CACHED_KEY_LIFE_S = 60.0
CONTACT_CHARACTERS_MAX = 4_096


class Contact(msgspec.Struct, frozen=True, omit_defaults=True):
    """How to reach a customer; exists in the clear only in memory."""

    email: str
    name: str = ""

    def __repr__(self) -> str:
        return "Contact(…)"


class Forgotten(Poison):
    """The customer's key is gone: this contact can never be read again."""


class Vault:
    """Keys per customer, kept wrapped in the database and for a minute in memory."""

    def __init__(self, database: Database, master_key: str) -> None:
        self._database = database
        self._master = AESGCM(_key_bytes(master_key))
        self._cached: dict[str, tuple[float, AESGCM]] = {}

    async def encrypt(self, contacts: Sequence[tuple[str, Contact]]) -> list[str]:
        """Encrypt contacts of customers in order; a customer met for the first time gets a key."""
        customers = {customer for customer, _ in contacts}
        keys = await self._keys(customers)
        if missing := sorted(customers - keys.keys()):
            await self._database.execute(
                "INSERT INTO keys (customer_id, wrapped) SELECT * FROM unnest($1::text[],"
                " $2::bytea[]) ON CONFLICT DO NOTHING",
                missing,
                [self._wrap(customer, os.urandom(KEY_BYTES)) for customer in missing],
            )
            keys |= await self._keys(set(missing))
        return [_seal(keys[customer], customer, contact) for customer, contact in contacts]

    async def decrypt(self, contacts: Sequence[tuple[str, str]]) -> list[Contact | Poison]:
        """Read `(customer, ciphertext)` pairs in order.

        What cannot be read is `Forgotten` when the key is gone, or another `Poison`.
        """
        keys = await self._keys({customer for customer, _ in contacts})
        return [
            _open(keys[customer], customer, sealed)
            if customer in keys
            else Forgotten("the customer was forgotten")
            for customer, sealed in contacts
        ]

    async def _keys(self, customers: Collection[str]) -> dict[str, AESGCM]:
        now = time.monotonic()
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
                key = AESGCM(self._unwrap(row["customer_id"], row["wrapped"]))
                known[row["customer_id"]] = key
                self._cached[row["customer_id"]] = (now + CACHED_KEY_LIFE_S, key)
        return known

    def _wrap(self, customer: str, key: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._master.encrypt(nonce, key, customer.encode())

    def _unwrap(self, customer: str, wrapped: bytes) -> bytes:
        try:
            return self._master.decrypt(
                wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], customer.encode()
            )
        except InvalidTag as error:
            raise Refused(
                "IRONCART_MASTER_KEY does not open the vault: use the key it was made with"
            ) from error


def new_master_key() -> str:
    """Draw a master key as the environment holds it: 32 random bytes in base64."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def _key_bytes(master_key: str) -> bytes:
    try:
        key = base64.b64decode(master_key, validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise Refused("IRONCART_MASTER_KEY must be 32 bytes in base64")
    return key


def _seal(key: AESGCM, customer: str, contact: Contact) -> str:
    nonce = os.urandom(NONCE_BYTES)
    sealed = nonce + key.encrypt(nonce, msgspec.json.encode(contact), customer.encode())
    return base64.b64encode(sealed).decode()


def _open(key: AESGCM, customer: str, sealed: str) -> Contact | Poison:
    try:
        raw = base64.b64decode(sealed, validate=True)
        clear = key.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], customer.encode())
        return msgspec.json.decode(clear, type=Contact)
    except (binascii.Error, InvalidTag, ValueError, msgspec.MsgspecError):
        return Poison("the contact cannot be read with the customer's key")
