"""The chain: what can be read from a message, how links follow, where they wait for another."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import structlog
from prometheus_client import Counter, Gauge

from ironcart.services.audit.store import Entry, Head, Sealed, Store
from ironcart.toolkit.broker import Delivery
from ironcart.toolkit.database import Connection, Database
from ironcart.toolkit.envelope import TEXT_CHARACTERS_MAX

SEQ_BYTES = 8
MICROSECONDS = 1_000_000
# Of Postgres: where its own count of time begins.
YEAR_2000_S = 946_684_800
# A gap that is filled late may have very many entries behind it: they are chained in steps.
STORED_ENTRIES_READ_MAX = 2_000
STORED_ENTRIES_LINKED_MAX = 20_000
GAP_WARNING_S = 10.0
VERIFIED_AT_ONCE_MAX = 5_000

gap_seconds = Gauge(
    "ironcart_audit_gap_seconds", "how long the chain has been waiting at a gap", ["stream"]
)
chain_behind = Gauge(
    "ironcart_audit_chain_behind", "entries that lie beyond the end of the chain", ["stream"]
)
conflicts = Counter(
    "ironcart_audit_conflicts_total", "messages unlike the entry of their sequence", ["stream"]
)


class _Loose(msgspec.Struct):
    """What an event is known by, whatever else is in it."""

    id: Any = ""
    type: Any = ""
    aggregate_id: Any = ""


_events = msgspec.json.Decoder(_Loose)
_encode = msgspec.json.Encoder().encode
# A copy of a hash that was fed nothing takes half the time of a new one.
_nothing = hashlib.sha256()
_LETTERS_ONLY = str.maketrans({"\x00": "\N{REPLACEMENT CHARACTER}"})


def genesis(stream: str) -> bytes:
    """The hash that a stream's first link follows."""
    return hashlib.sha256(stream.encode()).digest()


def digest_of(entry: Entry) -> bytes:
    """The hash of all that is stored of a message, but for when it came."""
    found = _nothing.copy()
    found.update(
        f"{entry.subject}\0{entry.event_id}\0{entry.type}\0{entry.aggregate_id}\0{entry.headers}\0"
        f"{entry.stored_at_us}\0".encode()
    )
    found.update(entry.body)
    return found.digest()


def link(previous: bytes, sealed: Sealed) -> bytes:
    """The hash of an entry that follows `previous`; 72 bytes go into it, in version 1 always more,
    so that no link is right in both."""
    found = _nothing.copy()
    found.update(previous + sealed.stream_seq.to_bytes(SEQ_BYTES, "big") + sealed.digest)
    return found.digest()


def link_1(previous: bytes, sealed: Sealed) -> bytes:
    """The same in version 1, which left out headers, names and time."""
    return hashlib.sha256(
        b"%b%b%b\x00%b\x00%b"
        % (
            previous,
            sealed.stream_seq.to_bytes(SEQ_BYTES, "big"),
            sealed.subject.encode(),
            sealed.event_id.encode(),
            sealed.digest,
        )
    ).digest()


LINK_OF_VERSION = {1: link_1, 2: link}


def extend(seq: int, head: bytes, following: Iterable[Sealed]) -> list[tuple[int, bytes]]:
    """Link what follows sequence `seq` without a gap; the rest of `following` is left."""
    links: list[tuple[int, bytes]] = []
    for sealed in following:
        if sealed.stream_seq != seq + 1:
            break
        seq, head = sealed.stream_seq, link(head, sealed)
        links.append((seq, head))
    return links


def readable(body: bytes) -> _Loose | None:
    """Read an event's names, or None when the body is not a JSON object in UTF-8."""
    try:
        if not body.isascii():
            body.decode()
        return _events.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def entry_of(delivery: Delivery) -> Entry:
    """Read a message as far as it can be read; never fails."""
    names = readable(delivery.body) or _Loose()
    return Entry(
        delivery.stream,
        delivery.stream_seq,
        _storable(delivery.subject),
        _name(names.id),
        _name(names.type),
        _name(names.aggregate_id),
        _headers(delivery.headers),
        delivery.body,
        _microseconds(delivery.stored_at),
    )


async def record(batch: Sequence[Delivery], connection: Connection) -> None:
    """Keep a batch of one stream's messages and lengthen its chain; a repeat changes nothing.

    The chain is locked first: whoever holds it knows what is there, so that nothing has to be
    inserted on the chance of a conflict, which would cost half as much again.
    """
    store, stream = Store(connection), batch[0].stream
    entries = {delivery.stream_seq: entry_of(delivery) for delivery in batch}
    sealed = {
        seq: Sealed(seq, entry.subject, entry.event_id, digest_of(entry))
        for seq, entry in entries.items()
    }
    await store.lock_chain(stream)
    head = await store.head(stream)
    if doubtful := [seq for seq in entries if seq <= head.last_entry_seq]:
        for stored in await store.sealed(stream, doubtful):
            del entries[stored.stream_seq]
            _compare(stream, stored, sealed.pop(stored.stream_seq))
    if entries:
        await store.insert(list(entries.values()))
        head = replace(head, last_entry_seq=max(head.last_entry_seq, *entries))
    await _lengthen(store, stream, head, sealed)


async def lengthen(store: Store, stream: str) -> None:
    """Lengthen a chain as far as there is no gap, by `STORED_ENTRIES_LINKED_MAX` at most."""
    await store.lock_chain(stream)
    await _lengthen(store, stream, await store.head(stream), {})


async def _lengthen(store: Store, stream: str, head: Head, known: Mapping[int, Sealed]) -> None:
    """The same from `head` on, and beyond what is `known`, which need not be read again."""
    seq, digest = head.stream_seq, head.hash or genesis(stream)
    links: list[tuple[int, bytes]] = []
    while seq < head.last_entry_seq and len(links) < STORED_ENTRIES_LINKED_MAX + len(known):
        following: Iterable[Sealed]
        if seq + 1 in known:
            following = (known[at] for at in sorted(known) if at > seq)
        else:
            following = await store.next_entries(stream, seq + 1, STORED_ENTRIES_READ_MAX)
        if not (added := extend(seq, digest, following)):
            break
        links += added
        seq, digest = added[-1]
    if links:
        await store.insert_links(stream, links)


async def lose(connection: Connection, stream: str, before_seq: int) -> int:
    """Say of every sequence before `before_seq` that never came that it never will.

    The place is taken by an entry of type `lost`, so that the chain goes on and shows it. Returns
    how many there were.
    """
    store = Store(connection)
    await store.lock_chain(stream)
    return await store.insert_lost(stream, before_seq)


async def watch_chains(database: Database, streams: Sequence[str], warned: set[str]) -> None:
    """Show how far each chain is behind, and warn once of each gap that lasts; `warned` is kept
    by the caller from one round to the next."""
    for progress in await Store(database).progress(streams):
        stream, behind = progress.stream, progress.last_entry_seq - progress.head_seq
        if behind > 0 and await Store(database).next_entries(stream, progress.head_seq + 1, 1):
            # No gap: another round of what a late message has set free.
            async with database.transaction() as connection:
                await lengthen(Store(connection), stream)
            continue
        chain_behind.labels(stream).set(behind)
        gap_seconds.labels(stream).set(progress.waiting_s if behind > 0 else 0.0)
        log = structlog.get_logger()
        if behind > 0 and progress.waiting_s > GAP_WARNING_S:
            if stream not in warned:
                warned.add(stream)
                log.warning(
                    "The audit chain waits at a gap",
                    stream=stream,
                    missing=progress.head_seq + 1,
                    entries_beyond=behind,
                    waiting_s=round(progress.waiting_s, 1),
                )
        elif stream in warned:
            warned.discard(stream)
            log.info("The audit chain goes on", stream=stream, head=progress.head_seq)


@dataclass(frozen=True, slots=True)
class Verified:
    """What recomputing one chain found, from `first_seq` on."""

    entries: int
    head_seq: int
    head_hash: bytes
    first_bad: int | None
    gap: int | None


async def verify(store: Store, stream: str, first_seq: int = 1) -> Verified:
    """Recompute a chain, trusting only the link before `first_seq`, up to where it ends now.

    `first_bad` is the first sequence whose entry or link is missing or does not add up; `gap` is a
    message that has not arrived although later ones have.
    """
    head = await store.head(stream)
    gap = None
    if head.last_entry_seq > head.stream_seq:
        waiting = await store.next_entries(stream, head.stream_seq + 1, 1)
        gap = None if waiting else head.stream_seq + 1
    expected, digest = first_seq, genesis(stream)
    first_bad = None
    if 1 < first_seq <= head.stream_seq:
        before = await store.link(stream, first_seq - 1)
        digest, first_bad = before or b"", None if before else first_seq - 1
    while first_bad is None and expected <= head.stream_seq:
        kept = await store.kept(stream, expected, head.stream_seq, VERIFIED_AT_ONCE_MAX)
        for place in kept:
            if place.stream_seq != expected or place.entry is None or place.hash is None:
                first_bad = expected
                break
            follow = LINK_OF_VERSION.get(place.version)
            if follow is None or (digest := follow(digest, place.entry)) != place.hash:
                first_bad = expected
                break
            expected += 1
        if not kept:
            first_bad = expected
    return Verified(
        await store.count(stream),
        head.stream_seq,
        head.hash or genesis(stream),
        first_bad,
        gap,
    )


def _compare(stream: str, stored: Sealed, repeated: Sealed) -> None:
    """A repeat must be what is stored; anything else means that the stream itself was replaced."""
    if stored != repeated:
        conflicts.labels(stream).inc()
        structlog.get_logger().error(
            "A message is unlike the audit entry of its sequence",
            stream=stream,
            stream_seq=stored.stream_seq,
            event_id=repeated.event_id,
        )


def _microseconds(stored_at: float) -> int:
    """As Postgres rounds it, which is how entries were kept before they were chained with it."""
    return round((stored_at - YEAR_2000_S) * MICROSECONDS) + YEAR_2000_S * MICROSECONDS


def _name(value: Any) -> str:
    usable = isinstance(value, str) and len(value) <= TEXT_CHARACTERS_MAX and "\x00" not in value
    return value if usable else ""


def _storable(text: str) -> str:
    """Text that Postgres takes: no NUL, and no half of a surrogate pair."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.encode(errors="replace").decode().translate(_LETTERS_ONLY)


def _headers(headers: Mapping[str, str]) -> str:
    try:
        return _encode(headers).decode()
    except UnicodeEncodeError:
        return _encode(
            {_storable(name): _storable(value) for name, value in headers.items()}
        ).decode()
