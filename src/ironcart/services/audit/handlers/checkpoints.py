"""Checkpoints: signed statements of where all chains stand, themselves a chain.

What is signed is the text that `text_of` makes; docs/security.md has it for other verifiers. One is
signed and committed before anybody outside sees it, so a crash leaves none that was not meant.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated

import msgspec
import structlog
from msgspec import Meta, Struct
from prometheus_client import Counter

from ironcart.services.audit.store import Last, Store
from ironcart.toolkit.signing import Mark, Signer

FORMAT = 1
BEFORE_THE_FIRST = "0" * 64
LINE_CHARACTERS_MAX = 16_384
FOLLOWED_AT_ONCE_MAX = 1_000

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]

signed = Counter("ironcart_audit_checkpoints_total", "checkpoints that this replica has signed")
disagreements = Counter(
    "ironcart_audit_checkpoint_conflicts_total",
    "times that a checkpoint was found to disagree with the chain, the database or the export",
)


class Head(Struct, frozen=True):
    """Where one chain stands."""

    stream: Annotated[str, Meta(pattern=r"^[A-Z][A-Z0-9_-]{0,63}\Z")]
    stream_seq: Annotated[int, Meta(ge=1)]
    hash: Sha256


class Checkpoint(Struct, frozen=True, forbid_unknown_fields=True):
    """A signed statement; the JSON of it, in one line, is what is kept and exported.

    `at` is the signer's clock, never earlier than the one before; `previous` is the hash of the
    text of the one before, `key` the id of the key, `heads` in the order of their streams.
    """

    version: int
    number: Annotated[int, Meta(ge=1)]
    at: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z")]
    previous: Sha256
    key: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    heads: list[Head]
    signature: str = ""

    def place(self, stream: str) -> int:
        """Up to which sequence this covers a stream; 0 for not at all."""
        return next((head.stream_seq for head in self.heads if head.stream == stream), 0)


class Stand(Enum):
    """Why nothing was signed."""

    # Another replica has done it, or nothing has moved.
    RESTS = "rests"
    # The chain has not come as far again as was signed: the database is an older one.
    BEHIND = "behind"
    # What was signed last is not by us, though it says so.
    FORGED = "forged"
    # Another key has signed after ours: ours may be anybody's by now.
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Due:
    """When a checkpoint is made: after so many entries at once, else when `waited`."""

    entries: int
    waited: bool

    def met(self, last: Checkpoint | None, heads: Sequence[Last]) -> bool:
        """Whether one is to be made now, with the chains at `heads`."""
        places = ((head.stream_seq, last.place(head.stream) if last else 0) for head in heads)
        moved = sum(max(0, now - then) for now, then in places)
        return moved >= self.entries or (moved > 0 and self.waited)


def text_of(checkpoint: Checkpoint) -> bytes:
    """What is signed, byte for byte."""
    heads = "".join(f"head {h.stream} {h.stream_seq} {h.hash}\n" for h in checkpoint.heads)
    return (
        f"ironcart audit checkpoint {checkpoint.version}\nnumber {checkpoint.number}\n"
        f"at {checkpoint.at}\nprevious {checkpoint.previous}\nkey {checkpoint.key}\n{heads}"
    ).encode()


def digest_of(checkpoint: Checkpoint | None) -> str:
    """What the next checkpoint says of this one."""
    if checkpoint is None:
        return BEFORE_THE_FIRST
    return hashlib.sha256(text_of(checkpoint)).hexdigest()


def mark_of(checkpoint: Checkpoint) -> Mark:
    """What to keep in mind of it."""
    return Mark(checkpoint.number, digest_of(checkpoint))


def read(line: str | bytes) -> Checkpoint | None:
    """Read a line; None when it is no checkpoint that we could have written."""
    try:
        found = msgspec.json.decode(line, type=Checkpoint)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return found if found.version == FORMAT else None


def is_signed(checkpoint: Checkpoint, signer: Signer) -> bool:
    """Whether this key has signed it."""
    try:
        signature = base64.b64decode(checkpoint.signature, validate=True)
    except (binascii.Error, ValueError):
        return False
    return signer.signed(text_of(checkpoint), signature)


def follows(checkpoint: Checkpoint, last: Checkpoint | None) -> bool:
    """Whether it comes right after `last`."""
    number = last.number if last else 0
    return checkpoint.number == number + 1 and checkpoint.previous == digest_of(last)


def short_of(last: Checkpoint | None, heads: Sequence[Last]) -> str:
    """The first stream whose chain ends before what was signed last of it, or ""."""
    ends = {head.stream: head.stream_seq for head in heads}
    signed_heads = last.heads if last is not None else []
    short = (head.stream for head in signed_heads if ends.get(head.stream, 0) < head.stream_seq)
    return next(short, "")


def next_after(
    last: Checkpoint | None, heads: Sequence[Last], now: datetime, signer: Signer
) -> Checkpoint:
    """Make the checkpoint that follows `last`, signed."""
    at = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    plain = Checkpoint(
        FORMAT,
        last.number + 1 if last else 1,
        max(at, last.at) if last else at,
        digest_of(last),
        signer.key_id,
        sorted((Head(h.stream, h.stream_seq, h.hash.hex()) for h in heads), key=lambda h: h.stream),
    )
    signature = base64.b64encode(signer.sign(text_of(plain))).decode()
    return msgspec.structs.replace(plain, signature=signature)


def line_of(checkpoint: Checkpoint) -> str:
    """The line that is kept and exported."""
    return msgspec.json.encode(checkpoint).decode()


async def sign(
    store: Store,
    signer: Signer,
    streams: Sequence[str],
    due: Due,
    *,
    trusted: tuple[datetime, str | None],
    now: datetime,
) -> Checkpoint | Stand:
    """Sign where the chains stand, if it is due; for a transaction of its own.

    One replica at a time: the lock is held until the commit, and the number is the table's key.
    `trusted` is since when the database runs that was last compared with the export, and the newest
    checkpoint in it that was found to follow from what is remembered: none other is built on.
    """
    await store.lock_checkpoints()
    # A statement of its own, to see what the one before us has committed.
    standing = await store.standing(streams)
    last = read(standing.line) if standing.line is not None else None
    if (standing.started_at, standing.line) != trusted or not due.met(last, standing.heads):
        return Stand.RESTS
    if standing.line is not None and (stand := await _hindrance(store, last, signer)):
        return stand
    checkpoint = next_after(last, standing.heads, now, signer)
    if not await store.insert_checkpoint(checkpoint.number, checkpoint.key, line_of(checkpoint)):
        return Stand.RESTS
    signed.inc()
    return checkpoint


async def _hindrance(store: Store, last: Checkpoint | None, signer: Signer) -> Stand | None:
    if last is None or (last.key == signer.key_id and not is_signed(last, signer)):
        return Stand.FORGED
    if last.key != signer.key_id and await store.has_signed(signer.key_id):
        return Stand.RETIRED
    return None if await _still_holds(store, last) else Stand.BEHIND


async def unlinked(store: Store, last: Checkpoint) -> str:
    """The first stream that has no link at the place that was signed last of it, or ""."""
    found = await store.links_at([(head.stream, head.stream_seq) for head in last.heads])
    return next((head.stream for head in last.heads if head.stream not in found), "")


async def _still_holds(store: Store, last: Checkpoint) -> bool:
    """Whether the chains have come as far as was signed. If one goes by other hashes now, that is
    reported, and what comes is signed all the same: the older checkpoints go on telling it."""
    found = await store.links_at([(head.stream, head.stream_seq) for head in last.heads])
    if any(head.stream not in found for head in last.heads):
        return False
    for head in last.heads:
        if found[head.stream].hex() != head.hash:
            disagreements.inc()
            structlog.get_logger().error(
                "The audit chain is not what was signed",
                stream=head.stream,
                stream_seq=head.stream_seq,
                checkpoint=last.number,
            )
    return True


async def leads(store: Store, mark: Mark, number: int) -> bool:
    """Whether the checkpoint that was marked is in the database, and from there up to `number`,
    where that is higher, each one follows the one before."""
    last: Checkpoint | None = None
    at, end = mark.number - 1, max(number, mark.number)
    while at < end:
        lines = await store.checkpoints_after(at, min(end - at, FOLLOWED_AT_ONCE_MAX))
        for line in lines:
            found = read(line)
            if found is None:
                return False
            if not (follows(found, last) if last is not None else mark_of(found) == mark):
                return False
            last, at = found, found.number
        if not lines:
            return False
    return True


async def adopt(store: Store, lines: Sequence[str], signer: Signer) -> list[str] | None:
    """Take over checkpoints that were exported and are not in the database, which was restored to
    an earlier moment: up to the last one of our key, which vouches for all before it.

    Returns the lines of other keys after that one, which are not taken: give them again with what
    follows. None, and nothing is taken, when one of them does not follow.
    """
    await store.lock_checkpoints()
    newest = await store.last_line()
    last = read(newest) if newest is not None else None
    fresh: list[tuple[Checkpoint, str]] = []
    vouched = 0
    for line in lines:
        checkpoint = read(line)
        if checkpoint is not None and last is not None and checkpoint.number <= last.number:
            continue  # Another replica was first.
        if checkpoint is None or not follows(checkpoint, last):
            return None
        fresh.append((checkpoint, line))
        if checkpoint.key == signer.key_id:
            if not is_signed(checkpoint, signer):
                return None
            vouched = len(fresh)
        last = checkpoint
    for checkpoint, line in fresh[:vouched]:
        await store.insert_checkpoint(checkpoint.number, checkpoint.key, line)
    return [line for _, line in fresh[vouched:]]
