"""Audit over HTTP: what happened to an aggregate, whether the chains hold, where they stand."""

import base64
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Raw, Struct

from ironcart.services.audit.handlers.chain import readable, verify
from ironcart.services.audit.handlers.checkpoints import Checkpoint, read
from ironcart.services.audit.store import Found, Store
from ironcart.toolkit.database import Database
from ironcart.toolkit.envelope import NAME_PATTERN
from ironcart.toolkit.http import Endpoint, Fault, Operation, Parameter, Problem, json_response
from ironcart.toolkit.http.routes import (
    PAGING,
    Answer,
    Call,
    read_cursor,
    read_limit,
    read_name,
    write_cursor,
)

# Until the year 2112, which Postgres, Python and JSON all hold exactly.
INSTANT_US_MAX = 2**52
SEQ_MAX = 2**63 - 1

Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="sha256 in hex")]


class AuditItem(Struct, frozen=True):
    """One message: `event` as it travelled, or its bytes as `{"undecodable": base64}`; `hash` is
    null until the chain has reached it."""

    stream: str
    stream_seq: int
    type: str
    event: Any
    hash: Hash | None


class AuditPage(Struct, frozen=True):
    """What happened, in the order in which the broker stored it."""

    items: list[AuditItem]
    next_cursor: str | None


class StreamVerdict(Struct, frozen=True):
    """One chain, recomputed: `first_bad` is the first sequence that does not add up; `gap` is a
    message that has not arrived although later ones have."""

    stream: str
    entries: int
    head_seq: int
    head_hash: Hash
    verified: bool
    first_bad: int | None
    gap: int | None


class Verdict(Struct, frozen=True):
    """Every chain that was asked for."""

    streams: list[StreamVerdict]


class ChainEnd(Struct, frozen=True):
    """Where a chain stands, and since when."""

    stream: str
    stream_seq: int
    hash: Hash
    at: datetime


class Checkpoints(Struct, frozen=True):
    """The last link of each chain that has one, and a page of what was signed, newest first.

    What comes from here comes from the database: hold it against what was exported, or let
    `ironcart audit verify` do so.
    """

    items: list[ChainEnd]
    signed: list[Checkpoint]
    next_cursor: str | None


class Number(Struct, frozen=True):
    """Where a page of checkpoints ended."""

    number: Annotated[int, Meta(ge=1, le=SEQ_MAX)]


class Position(Struct, frozen=True):
    """Where a page ended."""

    stored_at_us: Annotated[int, Meta(ge=0, le=INSTANT_US_MAX)]
    stream: Annotated[str, Meta(pattern=r"^[A-Z]{1,32}\Z")]
    stream_seq: Annotated[int, Meta(ge=0, le=SEQ_MAX)]


_BEGINNING = Position(0, "A", 0)


def _item(found: Found) -> AuditItem:
    event: Any = Raw(found.body)
    if readable(found.body) is None:
        event = {"undecodable": base64.b64encode(found.body).decode()}
    digest = found.hash.hex() if found.hash is not None else None
    return AuditItem(found.stream, found.stream_seq, found.type, event, digest)


def endpoints(database: Database, streams: Sequence[str]) -> list[Endpoint]:
    """The routes, with their documentation."""

    async def get_trail(request: Call) -> Answer:
        aggregate_id = read_name(request, "aggregate_id")
        limit = read_limit(request)
        after = read_cursor(request, Position)
        start = after or _BEGINNING
        found = await Store(database).about(
            aggregate_id, (start.stored_at_us, start.stream, start.stream_seq), limit + 1
        )
        if not found and after is None:
            raise Problem(404, f"nothing is known of {aggregate_id}")
        cursor = None
        if len(found) > limit:
            found = found[:limit]
            last = found[-1]
            cursor = write_cursor(Position(last.stored_at_us, last.stream, last.stream_seq))
        return json_response(AuditPage([_item(each) for each in found], cursor))

    async def get_verdict(request: Call) -> Answer:
        wanted, first_seq = _verify_query(request, streams)
        store = Store(database)
        verdicts = []
        for stream in wanted:
            found = await verify(store, stream, first_seq)
            verdicts.append(
                StreamVerdict(
                    stream,
                    found.entries,
                    found.head_seq,
                    found.head_hash.hex(),
                    found.first_bad is None,
                    found.first_bad,
                    found.gap,
                )
            )
        return json_response(Verdict(verdicts))

    async def get_checkpoints(request: Call) -> Answer:
        return json_response(await _checkpoints(request, Store(database), streams))

    return [
        Endpoint("GET", "/audit/verify", get_verdict, _verify_operation(streams)),
        Endpoint(
            "GET",
            "/audit/checkpoints",
            get_checkpoints,
            Operation(
                "See where the chains stand, and what was signed",
                {200: Checkpoints},
                (400,),
                PAGING,
            ),
        ),
        Endpoint("GET", "/audit/{aggregate_id}", get_trail, _TRAIL),
    ]


async def _checkpoints(request: Call, store: Store, streams: Sequence[str]) -> Checkpoints:
    limit, after = read_limit(request), read_cursor(request, Number)
    heads = (await store.standing(streams)).heads
    lines = await store.checkpoints_before(after.number if after else SEQ_MAX, limit + 1)
    signed = [found for line in lines[:limit] if (found := read(line)) is not None]
    cursor = write_cursor(Number(signed[-1].number)) if len(lines) > limit and signed else None
    ends = [ChainEnd(h.stream, h.stream_seq, h.hash.hex(), h.at) for h in heads]
    return Checkpoints(ends, signed, cursor)


_TRAIL = Operation(
    "See everything that happened to an order or a SKU",
    {200: AuditPage},
    (400, 404),
    (
        Parameter(
            "aggregate_id", "path", "the order or SKU", {"type": "string", "pattern": NAME_PATTERN}
        ),
        *PAGING,
    ),
)


def _verify_operation(streams: Sequence[str]) -> Operation:
    return Operation(
        "Recompute the chains from their beginning",
        {200: Verdict},
        (400,),
        (
            Parameter(
                "stream", "query", "only this one", {"type": "string", "enum": list(streams)}
            ),
            Parameter(
                "from",
                "query",
                "recompute from this sequence on, trusting the link before it",
                {"type": "integer", "minimum": 1, "maximum": SEQ_MAX},
            ),
        ),
    )


def _verify_query(request: Call, streams: Sequence[str]) -> tuple[Sequence[str], int]:
    stream, first = request.query_params.get("stream"), request.query_params.get("from")
    faults = []
    if stream is not None and stream not in streams:
        faults.append(Fault("/stream", f"use one of {', '.join(streams)}"))
    if first is not None and (
        not re.fullmatch("[0-9]{1,19}", first) or not 1 <= int(first) <= SEQ_MAX
    ):
        faults.append(Fault("/from", "use a sequence, from 1"))
    if faults:
        raise Problem(400, "the query is not valid", faults=faults)
    return (stream,) if stream is not None else streams, int(first) if first is not None else 1
