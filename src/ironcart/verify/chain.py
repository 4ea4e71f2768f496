"""The audit's chain as somebody else computes it: from what is stored, by published formulas."""

import hashlib
from dataclasses import dataclass

SEQ_BYTES = 8
# In version 1 a link left out the headers, the names that were read, and the time.
VERSION_OF_BODIES = 1
VERSION = 2


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
