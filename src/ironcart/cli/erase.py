"""`ironcart erase CUSTOMER`: destroys a customer's key; what it encrypted is never read again."""

import asyncio
import getpass
import hashlib
import secrets
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct

from ironcart.cli import address
from ironcart.toolkit import settings, tls
from ironcart.toolkit.database import Connection, Database
from ironcart.toolkit.deadletters import ACTIONS, CustomerForgotten
from ironcart.toolkit.envelope import Name
from ironcart.toolkit.history import Cause, History
from ironcart.toolkit.outcomes import Fact, Refused
from ironcart.toolkit.telemetry import context
from ironcart.toolkit.vault import CACHED_KEY_LIFE_S

# Whose keys these are: it makes them, so it tells when one is destroyed.
OWNER = "orders"


class Where(Struct, frozen=True, kw_only=True):
    """Where the vault is, and the history in which erasing is told."""

    vault_database_url: str
    database_url: str


class Found(Struct, frozen=True):
    """What there is of a customer; `since` is None when there is no key."""

    since: datetime | None
    in_flight: int


def erase(
    customer: Annotated[str, typer.Argument(help="The customer's id, as orders have it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; else only say what it would.")] = False,
    by: Annotated[str, typer.Option(help="Who does it, for the audit trail; default: you.")] = "",
    why: Annotated[str, typer.Option(help="Why, for the audit trail; no personal data.")] = "",
    data: address.Data = address.DATA_DEFAULT,
) -> None:
    """Forget a customer: destroy the key of every mail address and name that they ever gave.

    Without --yes nothing is changed. It cannot be undone, and is safe to repeat.
    """
    try:
        msgspec.convert(customer, Name)
    except msgspec.ValidationError as error:
        raise Refused("a customer's id is 1 to 64 of A-Z a-z 0-9 . _ -") from error
    if "@" in why:
        raise Refused("--why is kept for ever: leave mail addresses out of it")
    place = _where(data)
    told = CustomerForgotten(customer, by or getpass.getuser(), why)
    found = asyncio.run(_erase(place, told) if yes else _look(place, customer))
    if found.since is None:
        print(f"{customer}: no key is kept, so nothing of theirs can be read")
        return
    done = "destroyed" if yes else "would be destroyed (--yes does it)"
    print(f"{customer}: the key made on {found.since:%Y-%m-%d} {done}")
    print(f"{found.in_flight} orders in flight go on, and end without a mail")
    print(
        f"services may hold the key in memory for {CACHED_KEY_LIFE_S:g} s more; backups of the"
        " vault hold it until they are gone"
    )


def aggregate_of(customer: str) -> str:
    """The aggregate of what is done about a customer; `ironcart order` shows its trail."""
    return f"customer-{hashlib.sha256(customer.encode()).hexdigest()[:32]}"


def _where(data: Path) -> Where:
    if address.is_running(data):
        found = address.find(data).databases
        return Where(vault_database_url=found["vault"], database_url=found[OWNER])
    return settings.load(Where, tls.verified(settings.environment()), OWNER)


async def _look(place: Where, customer: str) -> Found:
    vault = Database(place.vault_database_url, "vault", "erase")
    orders = Database(place.database_url, OWNER, "erase")
    try:
        row = await vault.fetchrow(_KEY, customer)
        async with orders.acquire() as connection:
            in_flight = await connection.fetchval(_OPEN, customer)
        return Found(None if row is None else row["created_at"], in_flight)
    finally:
        await vault.close()
        await orders.close()


async def _erase(place: Where, told: CustomerForgotten) -> Found:
    """Destroy the key, once it is written that somebody did: the vault commits last."""
    vault = Database(place.vault_database_url, "vault", "erase")
    orders = Database(place.database_url, OWNER, "erase")
    try:
        async with vault.transaction() as keys, orders.transaction() as history:
            in_flight = await history.fetchval(_OPEN, told.customer_id)
            since = await keys.fetchval(_DESTROY, told.customer_id)
            if since is not None:
                await _tell(history, told)
        return Found(since, in_flight)
    finally:
        await vault.close()
        await orders.close()


async def _tell(connection: Connection, told: CustomerForgotten) -> None:
    aggregate_id = aggregate_of(told.customer_id)
    version = 1 + await connection.fetchval(_VERSIONS, aggregate_id)
    trace_id = secrets.token_hex(16)
    cause = Cause(trace_id, context({}, trace_id))
    await History(OWNER, ACTIONS).record(connection, [(Fact(aggregate_id, version, told), cause)])


_KEY = "SELECT created_at FROM keys WHERE customer_id = $1"
_DESTROY = "DELETE FROM keys WHERE customer_id = $1 RETURNING created_at"
_OPEN = """
SELECT count(*) FROM orders
WHERE customer_id = $1 AND phase IN ('open', 'cancelling') AND contact IS NOT NULL
"""
_VERSIONS = "SELECT coalesce(max(version), 0) FROM events WHERE aggregate_id = $1"
