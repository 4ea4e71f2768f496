"""`ironcart order ID`: what happened to one order, across services, in time order."""

import asyncio
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from ironcart.cli import address
from ironcart.toolkit.database import Database

AUDITED = """
SELECT stored_at, stream, stream_seq, type, event_id, body FROM entries
WHERE aggregate_id = $1 ORDER BY stored_at, stream, stream_seq
"""
SAYS = ("reason", "short", "amount", "currency", "decline_code", "reference", "template", "lines")


class _Body(msgspec.Struct):
    data: dict[str, msgspec.Raw]
    trace_id: str = ""


def order(
    order_id: Annotated[str, typer.Argument(help="The order, as in ORD-…")],
    data: address.Data = address.DATA_DEFAULT,
) -> None:
    """Tell what happened to an order, from the audit trail."""
    where = address.find(data)
    rows = asyncio.run(_read(where.databases["audit"], order_id))
    if not rows:
        typer.echo(f"ironcart order: the audit trail has nothing about {order_id}", err=True)
        raise typer.Exit(1)
    table = Table(title=f"{order_id}  (trace {rows[0][4]})", title_justify="left")
    for heading in ("when", "stream", "what", "detail"):
        table.add_column(heading, overflow="fold")
    for stored_at, stream, what, detail, _ in rows:
        table.add_row(stored_at, stream, what, detail)
    Console().print(table)


async def _read(url: str, order_id: str) -> list[tuple[str, str, str, str, str]]:
    database = Database(url, "audit", "ironcart order")
    try:
        rows = await database.fetch(AUDITED, order_id)
    finally:
        await database.close()
    return [
        (
            row["stored_at"].isoformat(timespec="milliseconds"),
            f"{row['stream']} {row['stream_seq']}",
            row["type"],
            *_detail(row["body"]),
        )
        for row in rows
    ]


def _detail(body: bytes) -> tuple[str, str]:
    try:
        read = msgspec.json.decode(body, type=_Body)
    except msgspec.MsgspecError:
        return "not an event", ""
    found = [f"{key} {bytes(read.data[key]).decode()}" for key in SAYS if key in read.data]
    return ", ".join(found), read.trace_id
