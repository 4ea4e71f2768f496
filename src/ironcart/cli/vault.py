"""`ironcart vault rotate`: wraps every customer's key anew, by the first master key."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import typer

from ironcart.cli import address
from ironcart.toolkit import settings, tls
from ironcart.toolkit.database import Database
from ironcart.toolkit.outcomes import Refused, Unavailable
from ironcart.toolkit.vault import MasterKeys, key_ring

ROTATE_KEYS_MAX = 500
MASTER_KEY_FILE = "master.key"

app = typer.Typer(help="The vault of customers' keys.", no_args_is_help=True)


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """Where the vault is, and where webhooks' secrets are, which the master key keeps too."""

    vault_database_url: str
    database_url: str


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """The master keys, the new one first."""

    master_key: str
    master_keys_old: str = ""

    def __repr__(self) -> str:
        return "Keys(…)"


class Count(msgspec.Struct):
    """How far a rotation has come."""

    seen: int = 0
    wrapped: int = 0
    damaged: int = 0

    def __str__(self) -> str:
        return f"{self.seen} looked at, {self.wrapped} wrapped anew, {self.damaged} damaged"


def where(data: Path) -> Where:
    """Find the databases: of a running `ironcart up`, else in the environment."""
    if address.is_running(data):
        found = address.find(data).databases
        return Where(vault_database_url=found["vault"], database_url=found["notifications"])
    return settings.load(Where, tls.verified(settings.environment()), "notifications")


@app.callback()
def _named() -> None:
    """Keep `rotate` a word of its own."""


@app.command("rotate")
def rotate(data: address.Data = address.DATA_DEFAULT) -> None:
    """Wrap every key anew by IRONCART_MASTER_KEY; those of IRONCART_MASTER_KEYS_OLD open them.

    Services work on meanwhile. Safe to repeat, and to cut short. Exit 1 while a key is left that
    only an old master key opens, or none.
    """
    environ = settings.environment()
    kept = data / MASTER_KEY_FILE
    if kept.exists() and (address.is_running(data) or "IRONCART_MASTER_KEY" not in environ):
        theirs = kept.read_text().strip()
        if environ.setdefault("IRONCART_MASTER_KEY", theirs) != theirs:
            raise Refused(
                f"IRONCART_MASTER_KEY is not the key in {kept}, which is what its services use: put"
                " the new key into that file, the old one into IRONCART_MASTER_KEYS_OLD, and start"
                " `ironcart up` anew"
            )
    keys = settings.load(Keys, environ, "notifications")
    ring = key_ring(keys.master_key, keys.master_keys_old)
    damaged = asyncio.run(_rotate(where(data), ring))
    if damaged:
        print(f"{damaged} are opened by none of these master keys: name the one that is missing")
        raise typer.Exit(1)
    print("the first master key opens everything: IRONCART_MASTER_KEYS_OLD may be dropped")


async def _rotate(place: Where, ring: tuple[str, ...]) -> int:
    """Go through everything until nothing is left to do; returns how many cannot be opened."""
    vault = Database(place.vault_database_url, "vault", "rotate")
    notifications = Database(place.database_url, "notifications", "rotate")
    try:
        while True:  # Again: a service may have added a key behind us, by the old master key.
            count = await rotate_customers(vault, MasterKeys(*ring))
            secrets = await _rotate_secrets(notifications, ring)
            if not count.wrapped and not secrets.wrapped:
                return count.damaged + secrets.damaged
    finally:
        await vault.close()
        await notifications.close()


async def rotate_customers(database: Database, master: MasterKeys) -> Count:
    """Wrap customers' keys anew, a batch at a time, and say how far that has come."""
    count = Count()
    async for rows in _pages(database, _CUSTOMERS):
        changed = []
        for customer, wrapped in rows:
            count.seen += 1
            try:
                key, is_new = master.unwrap(customer, wrapped)
            except Refused:
                count.damaged += 1
                continue
            if not is_new:
                changed.append((customer, wrapped, master.wrap(customer, key)))
        count.wrapped += await _write(database, _REWRAP, changed)
        print(f"customers' keys: {count}")
    return count


async def _rotate_secrets(database: Database, ring: tuple[str, ...]) -> Count:
    """The same for the secrets of webhook endpoints, which are sealed under the master key."""
    from ironcart.services.notifications.gateway import SecretBox

    new, every = SecretBox(ring[0]), SecretBox(*ring)
    count = Count()
    async for rows in _pages(database, _ENDPOINTS):
        changed = []
        for endpoint, sealed in rows:
            count.seen += 1
            try:
                new.open(endpoint, sealed)
            except Unavailable:
                try:
                    changed.append(
                        (endpoint, sealed, new.seal(endpoint, every.open(endpoint, sealed)))
                    )
                except Unavailable:
                    count.damaged += 1
        count.wrapped += await _write(database, _RESEAL, changed)
        print(f"webhooks' secrets: {count}")
    return count


async def _pages(database: Database, query: str) -> AsyncIterator[list[Any]]:
    """Go through a table by its key."""
    after = ""
    while rows := await database.fetch(query, after, ROTATE_KEYS_MAX):
        yield [tuple(row) for row in rows]
        after = rows[-1][0]


async def _write(database: Database, query: str, changed: list[tuple[str, bytes, bytes]]) -> int:
    """Replace what is still as it was read: who was forgotten meanwhile stays forgotten."""
    if not changed:
        return 0
    return len(
        await database.fetch(query, *(list(column) for column in zip(*changed, strict=True)))
    )


_CUSTOMERS = """
SELECT customer_id, wrapped FROM keys WHERE customer_id > $1 ORDER BY customer_id LIMIT $2
"""
_REWRAP = """
UPDATE keys k SET wrapped = u.fresh
FROM unnest($1::text[], $2::bytea[], $3::bytea[]) AS u(customer_id, before, fresh)
WHERE k.customer_id = u.customer_id AND k.wrapped = u.before RETURNING k.customer_id
"""
_ENDPOINTS = """
SELECT endpoint_id, secret FROM webhook_endpoints WHERE endpoint_id > $1
ORDER BY endpoint_id LIMIT $2
"""
_RESEAL = """
UPDATE webhook_endpoints e SET secret = u.fresh
FROM unnest($1::text[], $2::bytea[], $3::bytea[]) AS u(endpoint_id, before, fresh)
WHERE e.endpoint_id = u.endpoint_id AND e.secret = u.before RETURNING e.endpoint_id
"""
