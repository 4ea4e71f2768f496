"""API keys: `ick_<id>_<secret>`, of which a file keeps SHA-256 hashes; read again when it changes.

A secret is 256 random bits, so nobody guesses it from its hash: a slow hash, as passwords need,
would only cost time.
"""

import hashlib
import hmac
import math
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta, Struct

from ironcart.toolkit.envelope import Name
from ironcart.toolkit.http.access.buckets import BURST_S, Bucket
from ironcart.toolkit.http.access.callers import Caller, Scope
from ironcart.toolkit.outcomes import Refused

PREFIX: Final = b"ick_"
ID_BYTES: Final = 8
SECRET_BYTES: Final = 32
FILE_BYTES_MAX: Final = 1024 * 1024
# A request in 17 minutes; with much less, times to wait are no numbers any more.
RATE_PER_S_MIN: Final = 0.001
RATE_PER_S_MAX: Final = 1_000_000.0
BURST_MAX: Final = 10_000_000
Stamp = tuple[int, int, int]


class Entry(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key as the file has it; whoever reads it cannot call with it."""

    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9]{4,32}\Z")]
    name: Name
    scope: Scope
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    rate_per_s: Annotated[float, Meta(ge=RATE_PER_S_MIN, le=RATE_PER_S_MAX)] | None = None
    burst: Annotated[int, Meta(ge=1, le=BURST_MAX)] | None = None
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None


class KeyFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    keys: tuple[Entry, ...]


def new_key(
    name: str,
    scope: Scope,
    *,
    rate_per_s: float | None = None,
    burst: int | None = None,
    expires_at: datetime | None = None,
) -> tuple[str, Entry]:
    """Draw a key: what the caller sends, which is kept nowhere, and its entry in the file."""
    key_id, secret = secrets.token_hex(ID_BYTES), secrets.token_urlsafe(SECRET_BYTES)
    key = f"{PREFIX.decode()}{key_id}_{secret}"
    return key, Entry(
        key_id, name, scope, hash_of(key.encode()).hex(), rate_per_s, burst, expires_at
    )


def hash_of(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()


def read_file(path: Path) -> KeyFile:
    """Read a key file; raises `Refused` with what to change."""
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
        if len(text) > FILE_BYTES_MAX:
            raise Refused(f"{path} is larger than {FILE_BYTES_MAX} bytes: take keys out")
        found = msgspec.json.decode(text, type=KeyFile)
    except OSError as error:
        raise Refused(f"API keys: {path}: {error.strerror}: make it readable") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        said = f"API keys: {path} is not a file of keys: {error}"
        raise Refused(f"{said}; `ironcart apikey new --file` writes one") from error
    twice = [each for each, count in Counter(key.id for key in found.keys).items() if count > 1]
    if twice:
        raise Refused(f"API keys: {path} has the id {twice[0]} twice: take one out")
    return found


def written(keys: Iterable[Entry]) -> str:
    """The text of a key file."""
    return msgspec.json.format(msgspec.json.encode(KeyFile(tuple(keys))), indent=1).decode() + "\n"


@dataclass(frozen=True, slots=True)
class Key:
    """One key that is in force."""

    id: bytes
    digest: bytes
    caller: Caller
    bucket: Bucket
    expires_at_s: float

    def expired(self) -> bool:
        """Whether its time is over."""
        return time.time() >= self.expires_at_s


class KeyRing:
    """The keys of a file; `rate_per_s` is for those that name none. Raises as `read_file`."""

    def __init__(self, path: Path, rate_per_s: float) -> None:
        self._path, self._rate_per_s = path, rate_per_s
        self._keys: dict[bytes, Key] = {}
        self._said = ""
        self._stamp = self._stamp_now()
        self._take(read_file(path))

    def find(self, presented: bytes) -> Key | None:
        """The key in force that was presented, expired or not."""
        key = self._keys.get(presented[len(PREFIX) :].partition(b"_")[0])
        if key is None or not hmac.compare_digest(hash_of(presented), key.digest):
            return None
        return key

    def has(self, key: Key) -> bool:
        """Whether a key that was found before is in force still."""
        now = self._keys.get(key.id)
        same = now is not None and (now.digest, now.caller) == (key.digest, key.caller)
        return same and not key.expired()

    def look(self) -> None:
        """Read the file again if it has changed; one that cannot be read changes nothing.

        That is logged once, and the file is read again at every look until it is good.
        """
        stamp = self._stamp_now()
        if stamp == self._stamp:
            self._said = ""
            return
        try:
            self._take(read_file(self._path))
        except Refused as error:
            if str(error) != self._said:
                structlog.get_logger().error("API keys stay as they were", error=str(error))
            self._said = str(error)
        else:
            structlog.get_logger().info("API keys read again", keys=len(self._keys))
            # Only what was read is not read again: leave to read a file changes no stamp of it.
            self._stamp, self._said = stamp, ""

    def _stamp_now(self) -> Stamp | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _take(self, file: KeyFile) -> None:
        try:
            self._keys = {entry.id.encode(): self._key(entry) for entry in file.keys}
        except (OverflowError, ValueError) as error:
            raise Refused(f"API keys: {self._path} has a number out of range: {error}") from error

    def _key(self, entry: Entry) -> Key:
        rate_per_s = entry.rate_per_s or self._rate_per_s
        burst = entry.burst or max(1, round(rate_per_s * BURST_S))
        before = self._keys.get(entry.id.encode())
        bucket = before.bucket if before else None
        if bucket is None or (bucket.rate_per_s, bucket.burst) != (rate_per_s, burst):
            bucket = Bucket(rate_per_s, burst)
        expires_at_s = entry.expires_at.timestamp() if entry.expires_at else math.inf
        caller = Caller(f"key:{entry.name}", entry.scope)
        return Key(entry.id.encode(), bytes.fromhex(entry.sha256), caller, bucket, expires_at_s)
