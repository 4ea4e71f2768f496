"""Looks for needles, byte by byte, wherever a running system could have left them.

A needle is found plain or disguised: as base64 at any offset, hex, percent-encoded, escaped as JSON
or Python escape, in UTF-16, and in any letter case where case says nothing.
"""

import base64
import io
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp
import asyncpg

from ironcart.toolkit.broker import Broker
from ironcart.toolkit.broker.reader import extent, read

CONTEXT_BYTES: Final = 60
BLOCK_BYTES: Final = 8_192
PROC: Final = Path("/proc")
TABLES = """
SELECT n.nspname AS schema, c.relname AS name FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND n.nspname NOT LIKE 'pg_toast%'
"""
# What the server knows besides: statements, who runs them, and what roles are.
SERVER = (
    "SELECT * FROM pg_stat_statements",
    "SELECT * FROM pg_stat_activity",
    "SELECT * FROM pg_authid",
    "SELECT * FROM pg_db_role_setting",
    "SELECT * FROM pg_description",
)


class Found(NamedTuple):
    """One needle in one place; `context` is what stands around it."""

    needle: str
    form: str
    place: str
    context: bytes


def forms(text: str) -> dict[str, bytes]:
    """How `text` may look; those of `FOLDED` are sought in lower case."""
    raw = text.encode()
    found = {
        "plain": text.lower().encode(),
        "hex": raw.hex().encode(),
        "percent": "".join(f"%{byte:02x}" for byte in raw).encode(),
        "json": "".join(f"\\u{ord(character):04x}" for character in text.lower()).encode(),
        "escaped": "".join(f"\\x{byte:02x}" for byte in raw.lower()).encode(),
        "utf-16": text.lower().encode("utf-16-le"),
    }
    for offset in range(3):
        # What neighbours have a share in is left out, at either end.
        written = base64.b64encode(bytes(offset) + raw)
        whole = written[-(-offset * 8 // 6) : (offset + len(raw)) * 8 // 6]
        found[f"base64+{offset}"] = whole
        if b"+" in whole or b"/" in whole:
            found[f"base64url+{offset}"] = whole.replace(b"+", b"-").replace(b"/", b"_")
    return found


FOLDED: Final = ("plain", "hex", "percent", "json", "escaped", "utf-16")


@dataclass
class Scan:
    """Needles by name, and where each one was found; `allowed` names files that may hold them."""

    needles: Mapping[str, str]
    allowed: Mapping[str, Collection[str]] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)
    looked: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._forms = {name: forms(text) for name, text in self.needles.items()}

    def look(self, kind: str, place: str, data: bytes) -> None:
        """Search some bytes of a kind of sink."""
        self.looked[kind] = self.looked.get(kind, 0) + len(data)
        self._seek(kind, place, data)

    def _seek(self, kind: str, place: str, data: bytes) -> None:
        lower = data.lower()
        for name, written in self._forms.items():
            if place.rpartition("/")[2] in self.allowed.get(name, ()):
                continue
            for form, wanted in written.items():
                at = (lower if form in FOLDED else data).find(wanted)
                if at >= 0:
                    around = data[max(0, at - CONTEXT_BYTES) : at + len(wanted) + CONTEXT_BYTES]
                    self.found.append(Found(name, form, f"{kind} {place}", around))

    async def tables(self, url: str) -> None:
        """Every column of every table, in binary form, and what the server knows besides."""
        connection = await asyncpg.connect(url)
        try:
            for row in await connection.fetch(TABLES):
                await self._table(connection, row["schema"], row["name"])
            await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            for query in SERVER:
                told = "\n".join(str(tuple(row)) for row in await connection.fetch(query))
                self.look("server", query, told.encode())
        finally:
            await connection.close()

    async def _table(
        self, connection: "asyncpg.Connection[asyncpg.Record]", schema: str, name: str
    ) -> None:
        whole = io.BytesIO()
        await connection.copy_from_table(name, schema_name=schema, output=whole, format="binary")
        self.look("table", f"{schema}.{name}", whole.getvalue())

    async def streams(self, url: str, names: Iterable[str]) -> None:
        """Every message of these streams, with its subject and headers."""
        broker = Broker(url, "scan")
        await broker.connect()
        try:
            for name in names:
                held = await extent(broker, name)
                async for chunk in read(broker, name, held.first_seq, held.last_seq):
                    for each in chunk:
                        head = "\n".join(f"{key}: {text}" for key, text in each.headers.items())
                        whole = f"{each.subject}\n{head}\n".encode() + each.body
                        self.look("stream", f"{name} {each.seq}", whole)
        finally:
            await broker.close()

    def files(self, kind: str, folder: Path) -> None:
        """Every file below a folder; one that is gone by then had its time."""
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                try:
                    whole = path.read_bytes()
                    self.looked[kind] = self.looked.get(kind, 0) + len(whole)
                    self._seek(kind, str(path.relative_to(folder)), _written(whole))
                except FileNotFoundError:
                    continue

    async def pages(self, kind: str, urls: Iterable[str]) -> None:
        """What is answered at these addresses."""
        async with aiohttp.ClientSession() as session:
            for url in urls:
                async with session.get(url) as answer:
                    self.look(kind, url, await answer.read())

    def command_lines(self, pids: Iterable[int]) -> None:
        """What everybody on the machine can see of these processes."""
        for pid in pids:
            self.look("command line", str(pid), (PROC / str(pid) / "cmdline").read_bytes())


def _written(data: bytes) -> bytes:
    """A file without its blocks of zeros, of which servers set many aside."""
    zeros = bytes(BLOCK_BYTES)
    blocks = (data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES))
    return b"".join(block for block in blocks if block != zeros)
