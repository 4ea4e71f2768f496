"""Standard Webhooks: how a delivery is signed, and how the secret for it is written and kept."""

import base64
import binascii
import hashlib
import hmac
import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ironcart.toolkit.outcomes import Unavailable

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what secrets begin with, by the specification
SECRET_BYTES: Final = 32
NONCE_BYTES: Final = 12
HASH_CHARACTERS: Final = 16
SECRET_BYTES_MIN: Final = 24
SECRET_BYTES_MAX: Final = 64
# What a secret looks like; `read_secret` knows the rest.
SECRET_PATTERN: Final = rf"^{SECRET_PREFIX}[A-Za-z0-9+/]{{32,88}}={{0,2}}\Z"


def sign(secret: bytes, webhook_id: str, timestamp: int, body: bytes) -> str:
    """Sign a delivery made at `timestamp` (seconds since 1970): what `webhook-signature` says."""
    signed = b"%b.%d.%b" % (webhook_id.encode(), timestamp, body)
    return f"v1,{base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()}"


def new_secret() -> bytes:
    """Draw a secret."""
    return secrets.token_bytes(SECRET_BYTES)


def write_secret(secret: bytes) -> str:
    """Write a secret as callers keep it: `whsec_` and base64."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def read_secret(text: str) -> bytes:
    """Read a secret as callers keep it; raises `ValueError` when it is none."""
    try:
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("not a secret: not base64") from error
    if not text.startswith(SECRET_PREFIX) or not (
        SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX
    ):
        raise ValueError("not a secret: not whsec_ and 24 to 64 bytes")
    return secret


class SecretBox:
    """Keeps secrets as ciphertext, under keys derived from the master keys: the first one seals,
    any of them opens."""

    def __init__(self, *master_keys: str) -> None:
        masters = [base64.b64decode(each) for each in master_keys]
        secret = b"ironcart notifications webhook secret"
        self._keys = [AESGCM(_derived(each, secret)) for each in masters]
        self._hash_key = _derived(masters[0], b"ironcart notifications webhook url")

    def seal(self, endpoint_id: str, secret: bytes) -> bytes:
        """Encrypt the secret of one endpoint; for another it cannot be opened."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._keys[0].encrypt(nonce, secret, endpoint_id.encode())

    def open(self, endpoint_id: str, sealed: bytes) -> bytes:
        """Decrypt the secret of an endpoint; raises `Unavailable` when the key is another."""
        for key in self._keys:
            try:
                return key.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], endpoint_id.encode())
            except (InvalidTag, ValueError):
                continue
        raise Unavailable("IRONCART_MASTER_KEY does not open this endpoint's secret")

    def url_hash(self, url: str) -> str:
        """Stand for a URL where it must not be known: it may hold a token."""
        return hmac.digest(self._hash_key, url.encode(), hashlib.sha256).hex()[:HASH_CHARACTERS]


def _derived(master: bytes, purpose: bytes) -> bytes:
    return hmac.digest(master, purpose, hashlib.sha256)
