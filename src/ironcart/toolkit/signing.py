"""Ed25519: a private key that lives in a file and nowhere else, what it signs, and its name."""

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from ironcart.toolkit.outcomes import Refused

PUBLIC_SUFFIX = ".pub"
MARK_SUFFIX = ".last"
KEY_ID_CHARACTERS = 16
_PRIVATE_MODE = 0o600
_PUBLIC_MODE = 0o644
_FOR_OTHERS = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP


class Signer:
    """A private key in memory; `key_id` names its public key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        raw = key.public_key().public_bytes_raw()
        # The first 16 hex digits of sha256(the 32 bytes of the public key).
        self.key_id = hashlib.sha256(raw).hexdigest()[:KEY_ID_CHARACTERS]

    def sign(self, text: bytes) -> bytes:
        """Return 64 bytes; the same text always has the same signature."""
        return self._key.sign(text)

    def signed(self, text: bytes, signature: bytes) -> bool:
        """Whether this key made that signature."""
        try:
            self._key.public_key().verify(signature, text)
        except InvalidSignature:
            return False
        return True


class Mark(Struct, frozen=True, forbid_unknown_fields=True):
    """What was signed last: its number, and the sha256 of its text in hex."""

    number: Annotated[int, Meta(ge=1)]
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


def recall(path: Path) -> Mark | None:
    """Read what `remember` wrote; None when nothing was. Raises `Refused` when it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Mark)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise Refused(
            f"{path} does not say what was signed last: put it back, or, if it is gone for good,"
            " remove it"
        ) from error


def remember(path: Path, mark: Mark) -> None:
    """Write a mark in the place of the one before, whole and synced; raises `OSError`."""
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(mark) + b"\n")
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: Path) -> tuple[Signer, str]:
    """Read a private key (PEM, PKCS #8, without a password); returns it and a warning or "".

    Raises `Refused` when it cannot be read, is no Ed25519 key, or may be read by anybody. Its group
    may read it where somebody else owns it: that is how Kubernetes mounts a Secret.
    """
    try:
        found = path.stat()
        text = path.read_bytes()
    except OSError as error:
        raise Refused(f"the signing key {path} cannot be read: {error.strerror}") from error
    if found.st_mode & _FOR_OTHERS:
        raise Refused(f"the signing key {path} is open to others: `chmod 600 {path}`")
    warning = ""
    if found.st_mode & stat.S_IRGRP and found.st_uid == os.geteuid():
        warning = f"the signing key {path} can be read by its group: `chmod 600 {path}`"
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Refused(f"{path} is no private key: make one with `ironcart audit keygen`") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Refused(f"{path} is not an Ed25519 key: make one with `ironcart audit keygen`")
    return Signer(key), warning


def generate(path: Path) -> Path:
    """Make a new private key in `path`, for its owner alone, and its public key beside it.

    Returns the path of the public key. Raises `FileExistsError` rather than replace a private key.
    """
    key = Ed25519PrivateKey.generate()
    public = path.with_name(path.name + PUBLIC_SUFFIX)
    if path.exists():
        raise FileExistsError(path)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    shown = key.public_key().public_bytes(serialization.Encoding.PEM, form)
    # Whoever is cut short here has no key yet, and begins again.
    _write(public, shown, os.O_TRUNC, _PUBLIC_MODE)
    hidden = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(path, hidden, os.O_EXCL, _PRIVATE_MODE)
    return public


def _write(path: Path, text: bytes, flag: int, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flag, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
