"""Roles in a real Postgres, made by an owner who is no superuser: every privilege is tried."""

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from ironcart.cli import provision as command
from ironcart.cli import services
from ironcart.embedded.placement import forget
from ironcart.embedded.ports import HOST, free_port
from ironcart.embedded.postgres import Postgres
from ironcart.toolkit.outcomes import Refused
from ironcart.toolkit.tables import Privilege, privileges, role_of

SCHEMAS = (*services.NAMES, "vault")
OWNER = "shop_owner"
BASE = "shop"
KEYS = {"orders": {"SELECT", "INSERT"}, "notifications": {"SELECT"}}
COLUMNS = """
SELECT table_schema, table_name, column_name FROM information_schema.columns
WHERE table_schema = ANY($1::text[]) ORDER BY 1, 2, ordinal_position
"""


@dataclass(frozen=True)
class Base:
    """A database that was provisioned by an owner with CREATEROLE."""

    server: Postgres
    owner: str
    passwords: dict[str, str]
    said: list[str]

    def url(self, role: str, password: str) -> str:
        return f"postgresql://{role}:{password}@{HOST}:{self.server.port}/{BASE}"

    def url_as(self, service: str) -> str:
        return self.url(role_of(service), self.passwords[service])

    async def provisioned(self, **passwords: str) -> list[str]:
        """Have roles and privileges made as declared; what was done."""
        urls = dict.fromkeys(SCHEMAS, self.owner)
        return await command._provision_roles(urls, self.passwords | passwords)

    async def run(self, *statements: str, url: str = "") -> None:
        """Run statements as the superuser, or as whoever `url` names."""
        async with connected(url or self.server.url_of(BASE)) as connection:
            for statement in statements:
                await connection.execute(statement)


@pytest.fixture(scope="module")
def base() -> Iterator[Base]:
    """Roles belong to the whole server, so it is one of its own; it logs every statement."""
    folder = Path(tempfile.mkdtemp(prefix="ironcart-roles-", dir="/var/tmp"))
    folder.chmod(0o755)
    server = Postgres(folder, port=free_port())
    server.start()
    yield asyncio.run(_made(server))
    server.terminate()
    forget(folder)
    shutil.rmtree(folder)


async def _made(server: Postgres) -> Base:
    password = secrets.token_hex(16)
    async with connected(server.url_of("postgres")) as connection:
        await connection.execute("ALTER SYSTEM SET log_statement = 'all'")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute(f"CREATE ROLE {OWNER} LOGIN CREATEROLE PASSWORD '{password}'")
        await connection.execute(f"CREATE DATABASE {BASE} OWNER {OWNER}")
    passwords = {name: secrets.token_hex(16) for name in services.NAMES}
    owner = f"postgresql://{OWNER}:{password}@{HOST}:{server.port}/{BASE}"
    for schema in SCHEMAS:
        await command._migrate(schema, owner)
    made = Base(server, owner, passwords, [])
    made.said.extend(await made.provisioned())
    return made


@asynccontextmanager
async def connected(url: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def allows(connection: "asyncpg.Connection[asyncpg.Record]", statement: str) -> bool:
    """Try a statement for real, and undo it; what a constraint forbids was allowed."""
    attempt = connection.transaction()
    await attempt.start()
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return False
    except asyncpg.IntegrityConstraintViolationError:
        return True
    finally:
        await attempt.rollback()
    return True


async def tried(base: Base, service: str) -> set[Privilege]:
    """Everything that a role turns out to be able to do with any table of any schema."""
    async with connected(base.server.url_of(BASE)) as connection:
        columns = [tuple(row) for row in await connection.fetch(COLUMNS, list(SCHEMAS))]
    found = set()
    async with connected(base.url_as(service)) as connection:
        for schema, table in dict.fromkeys(each[:2] for each in columns):
            for verb, statement in {
                "SELECT": f"SELECT 1 FROM {schema}.{table} LIMIT 1",
                "INSERT": f"INSERT INTO {schema}.{table} DEFAULT VALUES",
                "DELETE": f"DELETE FROM {schema}.{table} WHERE false",
                "TRUNCATE": f"TRUNCATE {schema}.{table}",
            }.items():
                if await allows(connection, statement):
                    found.add(Privilege(schema, table, "", verb))
        for schema, table, column in columns:
            update = f"UPDATE {schema}.{table} SET {column} = DEFAULT WHERE false"
            if await allows(connection, update):
                found.add(Privilege(schema, table, column, "UPDATE"))
    return found


async def declared(base: Base, service: str) -> set[Privilege]:
    """What its card says, with each column of what may be updated whole."""
    wanted = privileges(service, services.find(service).tables)
    async with connected(base.server.url_of(BASE)) as connection:
        columns = await connection.fetch(COLUMNS, list(SCHEMAS))
    whole = {each[:2] for each in wanted if each.verb == "UPDATE" and not each.column}
    every = {
        Privilege(schema, table, column, "UPDATE")
        for schema, table, column in columns
        if (schema, table) in whole
    }
    return every | {each for each in wanted if each.verb != "UPDATE" or each.column}


async def test_a_role_can_do_what_is_declared_and_nothing_else(base: Base) -> None:
    """And what is declared says: audit only adds and reads, and only two touch the vault."""
    found = {name: await tried(base, name) for name in services.NAMES}

    assert found == {name: await declared(base, name) for name in services.NAMES}
    own = {"entries", "links", "checkpoints"}
    assert {each.verb for each in found["audit"] if each.table in own} == {"SELECT", "INSERT"}
    for name in services.NAMES:
        vault = {each.verb for each in found[name] if each.schema == "vault"}
        assert vault == KEYS.get(name, set())
        events = {each for each in found[name] if each.table == "events"}
        changed = {each.column for each in events if each.verb == "UPDATE"}
        assert changed == {"stream_seq"}, "what was told stays as it was told"


async def test_every_table_is_somebodys(base: Base) -> None:
    """A new table needs an entry on the card of its service."""
    known = {each[:2] for name in services.NAMES for each in await declared(base, name)}
    async with connected(base.server.url_of(BASE)) as connection:
        rows = await connection.fetch(COLUMNS, list(SCHEMAS))

    tables = {(row[0], row[1]) for row in rows} - {("vault", "schema_migrations")}

    assert tables == known


@pytest.mark.parametrize("service", services.NAMES)
async def test_a_role_owns_nothing_makes_nothing_and_sees_nothing_of_the_server(
    base: Base, service: str
) -> None:
    await base.run("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    forbidden = (
        f"CREATE TABLE {service}.mine (a int)",
        "CREATE TABLE public.mine (a int)",
        "CREATE TEMPORARY TABLE mine (a int)",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        f"SET ROLE {OWNER}",
        f"ALTER TABLE {service}.events ADD COLUMN mine int",
        f"CREATE INDEX ON {service}.events (id)",
        f"DROP TABLE {service}.events",
        f"COPY {service}.events TO '/tmp/mine'",
        f"COPY {service}.events TO PROGRAM 'true'",
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT pg_ls_dir('.')",
        "SELECT rolpassword FROM pg_authid",
        "SELECT query FROM public.pg_stat_statements",
        "SET log_statement = 'none'",
    )
    async with connected(base.url_as(service)) as connection:
        done = [each for each in forbidden if await allows(connection, each)]
        owned = await connection.fetchval(
            "SELECT count(*) FROM pg_shdepend WHERE deptype = 'o'"
            " AND refobjid = (SELECT oid FROM pg_roles WHERE rolname = current_user)"
        )

    assert not done
    assert owned == 0


async def test_a_second_run_changes_nothing_and_needs_no_right_to_make_roles(base: Base) -> None:
    assert "role ironcart_orders: created" in base.said
    await base.run(f"ALTER ROLE {OWNER} NOCREATEROLE")
    try:
        assert await base.provisioned() == []
        with pytest.raises(Refused, match=r"ORDERS_ROLE_PASSWORD, and .* may not change"):
            await base.provisioned(orders=secrets.token_hex(16))
    finally:
        await base.run(f"ALTER ROLE {OWNER} CREATEROLE")


async def test_what_was_granted_by_hand_is_taken_away_again(base: Base) -> None:
    before = await tried(base, "audit")
    await base.run(
        "GRANT DELETE, TRUNCATE ON audit.entries TO ironcart_audit",
        "GRANT UPDATE (body) ON audit.entries TO ironcart_audit",
        "GRANT USAGE ON SCHEMA orders TO ironcart_audit, PUBLIC",
        "GRANT SELECT ON orders.orders TO PUBLIC",
        f"GRANT TEMPORARY ON DATABASE {BASE} TO PUBLIC, ironcart_audit",
        "REVOKE SELECT ON audit.links FROM ironcart_audit",
        url=base.owner,
    )

    said = await base.provisioned()

    assert said == [
        "orders: 0 privileges granted, 5 taken away",
        "audit: 1 privileges granted, 3 taken away",
    ]
    assert await tried(base, "audit") == before
    assert await base.provisioned() == []


async def test_a_new_password_is_set_and_never_written_down(base: Base) -> None:
    fresh = secrets.token_hex(16)

    said = await base.provisioned(payments=fresh)

    assert said == ["role ironcart_payments: password set"]
    await base.run("SELECT 1", url=base.url("ironcart_payments", fresh))
    with pytest.raises(asyncpg.InvalidPasswordError):
        await base.run("SELECT 1", url=base.url_as("payments"))
    assert await base.provisioned() == ["role ironcart_payments: password set"]
    log = (base.server.folder / "postgres.log").read_text()
    assert 'ALTER ROLE "ironcart_payments"' in log
    assert not [each for each in (fresh, *base.passwords.values()) if each in log]


async def test_without_a_password_a_login_of_the_operators_takes_the_role_on(base: Base) -> None:
    password = secrets.token_hex(16)
    name = "operators_login"
    await base.run(
        "ALTER ROLE ironcart_inventory NOLOGIN",
        f"CREATE ROLE {name} LOGIN PASSWORD '{password}' IN ROLE ironcart_inventory",
    )
    try:
        assert await base.provisioned(inventory="") == []
        url = base.url(name, password)
        await base.run("INSERT INTO inventory.stock (sku, on_hand) VALUES ('S', 1)", url=url)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await base.run("SELECT 1 FROM orders.orders", url=url)
    finally:
        await base.run(f"DROP ROLE {name}")
        assert await base.provisioned() == ["role ironcart_inventory: password set"]


@pytest.mark.parametrize("power", ["SUPERUSER", "CREATEROLE", "BYPASSRLS"])
async def test_a_role_that_may_do_more_than_a_service_should_is_refused(
    base: Base, power: str
) -> None:
    await base.run(f"ALTER ROLE ironcart_orders {power}")
    try:
        with pytest.raises(Refused, match="ironcart_orders may do more than a service should"):
            await base.provisioned()
    finally:
        await base.run(f"ALTER ROLE ironcart_orders NO{power}")
    assert await base.provisioned() == []


@pytest.mark.parametrize("other", ["pg_read_all_data", "ironcart_orders"])
async def test_a_role_that_is_a_member_of_any_other_is_refused(base: Base, other: str) -> None:
    await base.run(f"GRANT {other} TO ironcart_payments")
    try:
        with pytest.raises(Refused, match="ironcart_payments may do what others"):
            await base.provisioned()
    finally:
        await base.run(f"REVOKE {other} FROM ironcart_payments")
    assert await base.provisioned() == []


async def test_a_membership_is_refused_with_what_to_revoke(base: Base) -> None:
    await base.run("GRANT pg_read_all_data, pg_write_all_data TO ironcart_payments")
    with pytest.raises(Refused, match="since it is a member") as refusal:
        await base.provisioned()

    await base.run(str(refusal.value).partition("member: ")[2])

    assert await base.provisioned() == []


async def test_where_everything_is_there_nothing_may_be_made(base: Base) -> None:
    """In a database of somebody else's, who lets our owner make nothing in it."""
    await base.run(f"ALTER DATABASE {BASE} OWNER TO CURRENT_USER")
    await base.run(f"REVOKE CREATE ON DATABASE {BASE} FROM {OWNER}")
    await base.run(f"GRANT CONNECT ON DATABASE {BASE} TO {OWNER}")
    await base.run(f"REVOKE CONNECT ON DATABASE {BASE} FROM ironcart_orders")
    try:
        for schema in SCHEMAS:
            await command._migrate(schema, base.owner)
        missing = f'GRANT CONNECT ON DATABASE "{BASE}" TO ironcart_orders'
        assert await base.provisioned() == [
            f"database {BASE}: not ours, so it stays as open as its owner left it",
            f"ironcart_orders cannot connect to it: have its owner {missing}",
        ]
        await base.run(missing)
        assert await base.provisioned() == []
    finally:
        await base.run(f"ALTER DATABASE {BASE} OWNER TO {OWNER}")
        await base.provisioned()


@pytest.mark.parametrize("written", ["DROP", "SELECT INSERT", "UPDATE ()", "SELECT,INSERT", "ALL"])
def test_a_declaration_that_cannot_be_read_is_an_error(written: str) -> None:
    with pytest.raises(ValueError, match="use SELECT, INSERT, UPDATE"):
        privileges("orders", {"orders": written})
