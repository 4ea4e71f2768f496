"""Signed checkpoints as an auditor reads them: each line by itself, and each after the one before.

The statement that is signed is rebuilt here from the fields of a line; docs/security.md has it.
"""

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from ironcart.verify.facts import CannotReadError

FORMAT = 1
BEFORE_THE_FIRST = "0" * 64
KEY_ID_CHARACTERS = 16
_FIELDS = {"version", "number", "at", "previous", "key", "heads", "signature"}
_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[0-9a-f]{16}")
_STREAM = re.compile(r"[A-Z][A-Z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One statement: `heads` is (sequence, hash) by stream, `text` is what was signed."""

    number: int
    at: str
    previous: str
    key: str
    heads: dict[str, tuple[int, bytes]]
    text: bytes
    signature: bytes

    @property
    def digest(self) -> str:
        """What the one after it says of it."""
        return hashlib.sha256(self.text).hexdigest()


class BadCheckpoint(Exception):
    """A checkpoint is not what was signed, or not where it belongs; the text says which and how."""


def parse(line: bytes) -> Checkpoint:
    """Read a line of an export; raises `ValueError` saying what is wrong."""
    found: dict[str, Any] = json.loads(line)
    if not isinstance(found, dict) or found.keys() != _FIELDS or found["version"] != FORMAT:
        raise ValueError("not a checkpoint of version 1")
    heads = {}
    for head in found["heads"]:
        if head.keys() != {"stream", "stream_seq", "hash"} or not isinstance(
            head["stream_seq"], int
        ):
            raise ValueError("not a head")
        if not _STREAM.fullmatch(head["stream"]) or not _SHA256.fullmatch(head["hash"]):
            raise ValueError("not a head")
        heads[head["stream"]] = head["stream_seq"], bytes.fromhex(head["hash"])
    number, at, previous, key = (found[name] for name in ("number", "at", "previous", "key"))
    proper = isinstance(number, int) and _AT.fullmatch(at) and _SHA256.fullmatch(previous)
    if not proper or not _KEY.fullmatch(key) or list(heads) != sorted(h for h in heads):
        raise ValueError("not a checkpoint of version 1")
    stands = "".join(f"head {name} {seq} {hash_.hex()}\n" for name, (seq, hash_) in heads.items())
    text = f"ironcart audit checkpoint {FORMAT}\nnumber {number}\nat {at}\n"
    text += f"previous {previous}\nkey {key}\n{stands}"
    signature = base64.b64decode(found["signature"], validate=True)
    return Checkpoint(number, at, previous, key, heads, text.encode(), signature)


class Keys:
    """Public keys in the order in which they were in use."""

    def __init__(self, keys: Sequence[Ed25519PublicKey]) -> None:
        self._keys = {
            hashlib.sha256(key.public_bytes_raw()).hexdigest()[:KEY_ID_CHARACTERS]: (turn, key)
            for turn, key in enumerate(keys)
        }

    def turn(self, checkpoint: Checkpoint) -> int:
        """Which key signed it, from 0; raises `ValueError` when none of these did."""
        if checkpoint.key not in self._keys:
            raise ValueError(f"signed by key {checkpoint.key}, which is none of those given")
        turn, key = self._keys[checkpoint.key]
        try:
            key.verify(checkpoint.signature, checkpoint.text)
        except InvalidSignature:
            raise ValueError("its signature is wrong: it is not what was signed") from None
        return turn


def read_keys(paths: Sequence[Path]) -> Keys:
    """Read public keys (PEM); raises `CannotReadError`."""
    keys = []
    for path in paths:
        try:
            key = load_pem_public_key(path.read_bytes())
        except OSError as error:
            raise CannotReadError(f"{path}: {error.strerror}") from None
        except (ValueError, UnsupportedAlgorithm):
            raise CannotReadError(f"{path} is no public key in PEM") from None
        if not isinstance(key, Ed25519PublicKey):
            raise CannotReadError(f"{path} is not an Ed25519 key")
        keys.append(key)
    return Keys(keys)


class Succession:
    """Takes checkpoints one by one, and says of the first that does not follow why it does not."""

    def __init__(self, keys: Keys, first: int) -> None:
        self.keys, self.first, self._turn = keys, first, 0
        self.last: Checkpoint | None = None

    def take(self, line: bytes, where: str) -> Checkpoint:
        """Accept the next line; raises `BadCheckpoint`."""
        expected = self.last.number + 1 if self.last else self.first
        if not line:
            raise BadCheckpoint(f"checkpoint {expected} is not there ({where})")
        try:
            found = parse(line)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise BadCheckpoint(f"checkpoint {expected} cannot be read ({where})") from None
        if found.number != expected:
            raise BadCheckpoint(
                f"checkpoint {expected} is not there: number {found.number} is in its place"
                f" ({where})"
            )
        try:
            turn = self.keys.turn(found)
        except ValueError as error:
            raise BadCheckpoint(f"checkpoint {expected}: {error} ({where})") from None
        fault = self._fault(found, turn)
        if fault:
            raise BadCheckpoint(f"checkpoint {expected}: {fault} ({where})")
        self.last, self._turn = found, turn
        return found

    def _fault(self, found: Checkpoint, turn: int) -> str:
        last = self.last
        if turn < self._turn:
            return f"signed by key {found.key}, after a newer key had taken its place"
        if last is None:
            whole = self.first > 1 or found.previous == BEFORE_THE_FIRST
            return "" if whole else "it says that there was one before it"
        if found.previous != last.digest:
            return f"it does not follow checkpoint {last.number}"
        if found.at < last.at:
            return f"it is older than checkpoint {last.number}"
        if any(found.heads.get(name, (0, b""))[0] < seq for name, (seq, _) in last.heads.items()):
            return f"a chain is shorter than in checkpoint {last.number}"
        return ""


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of an export from checkpoint `first` on, as far as they were there when asked."""

    files: list[tuple[Path, int]]
    first: int

    async def __aiter__(self) -> AsyncIterator[tuple[bytes, str]]:
        """Give each line and where it is; what a crash left before the whole line is left out."""
        begun, torn, torn_at = self.first == 1, b"", ""
        before = b""
        for path, size in self.files:
            for number, line in enumerate(_read(path, size), start=1):
                where = f"{path.name} line {number}"
                if not begun:
                    begun = _number(line) >= self.first
                if not begun or line == before:
                    continue
                if torn and not line.startswith(torn):
                    yield torn, torn_at
                torn = b""
                before = line
                if _is_json(line):
                    yield line, where
                else:
                    torn, torn_at = line, where
        if torn:
            yield torn, torn_at


def files_of(path: Path) -> list[tuple[Path, int]]:
    """The files of an export and how long they are now; raises `CannotReadError`."""
    try:
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        sizes = [(file, file.stat().st_size) for file in found]
    except OSError as error:
        raise CannotReadError(f"{path}: {error.strerror}") from None
    if not sizes:
        raise CannotReadError(f"{path} holds no checkpoints: name the folder they are exported to")
    return sizes


def _read(path: Path, size: int) -> list[bytes]:
    """The whole lines of what was there; half a line at the end is still being written."""
    try:
        with path.open("rb") as file:
            return file.read(size).split(b"\n")[:-1]
    except OSError as error:
        raise CannotReadError(f"{path}: {error.strerror}") from None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _number(line: bytes) -> int:
    try:
        found = json.loads(line)["number"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return 0
    return found if isinstance(found, int) else 0
