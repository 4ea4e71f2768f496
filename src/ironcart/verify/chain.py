"""The audit's chain as somebody else computes it: from what is stored, by published formulas."""

import hashlib
from dataclasses import dataclass
from typing import Any

from ironcart.verify.wire import loads

SEQ_BYTES = 8
# In version 1 a link left out the headers, the names that were read, and the time.
VERSION_OF_BODIES = 1
VERSION = 2
VERSIONS = (VERSION_OF_BODIES, VERSION)
NAME_CHARACTERS_MAX = 128
# The names of an entry that stands for a message which never came.
LOST = ("lost", "")


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of audit.entries with its link's hash and version (None: it has no link)."""

    stream: str
    seq: int
    subject: str
    event_id: str
    body: bytes
    hash: bytes | None
    version: int | None = VERSION_OF_BODIES
    type: str = ""
    aggregate_id: str = ""
    headers: str = ""
    stored_at_us: int = 0


def genesis(stream: str) -> bytes:
    """Return the hash every chain starts from."""
    return hashlib.sha256(stream.encode()).digest()


def link(previous: bytes, entry: Entry) -> bytes:
    """Return the hash of an entry that follows `previous`."""
    if entry.version == VERSION_OF_BODIES:
        body = hashlib.sha256(entry.body).digest()
        material = b"\0".join((entry.subject.encode(), entry.event_id.encode(), body))
    else:
        named = (entry.subject, entry.event_id, entry.type, entry.aggregate_id, entry.headers)
        text = "\0".join((*named, str(entry.stored_at_us), "")).encode()
        material = hashlib.sha256(text + entry.body).digest()
    return hashlib.sha256(previous + entry.seq.to_bytes(SEQ_BYTES, "big") + material).digest()


def is_named_right(entry: Entry) -> bool:
    """Whether type and aggregate, which version 1 has under no hash, are those of the body.

    What audit could not read has no names. Its reader refuses some bodies that this one takes, and
    the other way round: the event id, which is under the hash, tells whether it could.
    """
    names = (entry.type, entry.aggregate_id)
    if not entry.subject:
        return names == LOST
    try:
        fields = loads(entry.body)
    except (ValueError, RecursionError):
        return names == ("", "") or bool(entry.event_id)
    if not isinstance(fields, dict):
        return names == ("", "")
    known_as = _name(fields.get("id"))
    if known_as != entry.event_id:
        return names == ("", "")
    told = (_name(fields.get("type")), _name(fields.get("aggregate_id")))
    return names == told or (names == ("", "") and not known_as)


def _name(value: Any) -> str:
    usable = isinstance(value, str) and len(value) <= NAME_CHARACTERS_MAX and "\0" not in value
    return value if usable else ""
