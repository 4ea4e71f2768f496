"""Roles of the database: one for each service, which owns nothing and may do what is declared.

Only what differs is changed, so that a second run needs no more than the right to look.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Final, NamedTuple

import asyncpg
import msgspec
from msgspec import Meta

from ironcart.toolkit import settings
from ironcart.toolkit.database import Connection, Database, translated
from ironcart.toolkit.outcomes import Refused
from ironcart.toolkit.tables import Privilege, role_of

PUBLIC: Final = "PUBLIC"
CONNECT: Final = Privilege("", "", "", "CONNECT")
SALT_BYTES: Final = 16
ITERATIONS: Final = 4_096  # What Postgres itself takes.
LOGIN_TIMEOUT_S: Final = 5.0


class Password(msgspec.Struct, frozen=True):
    """The password of one service's role; without one it cannot log in by itself."""

    role_password: Annotated[str, Meta(pattern=r"^([!-~]{16,})?\Z")] = ""

    def __repr__(self) -> str:
        return "Password(…)"


class Held(NamedTuple):
    """What a role, or `PUBLIC`, may do: with a table, with a schema (no table), or with the
    database (no schema either)."""

    role: str
    privilege: Privilege


def password_of(service: str, environ: Mapping[str, str]) -> str:
    """Read the password of a service's role; "" when there is none. Raises `InvalidSettings`."""
    return settings.load(Password, environ, service).role_password


async def ensure_roles(
    url: str, schema: str, wanted: Mapping[str, Collection[Privilege]], passwords: Mapping[str, str]
) -> list[str]:
    """Make the roles of services lacking at `url`, and let them do in `schema` what is `wanted`.

    `wanted` and `passwords` go by service. Whatever else roles of ours, or everybody, may do there
    is taken away. Returns what was done, a line each. Safe to repeat; takes effect as one.
    """
    database = Database(url, "pg_catalog", "provision")
    try:
        async with database.transaction() as connection:
            done = [await _ensure_role(connection, name, passwords[name]) for name in wanted]
            done += await _ensure_privileges(connection, schema, wanted, passwords)
        for service in wanted:
            if passwords[service] and not await _logs_in(url, service, passwords[service]):
                async with database.acquire() as connection:
                    done.append(await _set_password(connection, service, passwords[service]))
    finally:
        await database.close()
    return [line for line in done if line]


async def _ensure_role(connection: Connection, service: str, password: str) -> str:
    role = role_of(service)
    row = await connection.fetchrow(_ROLE, role)
    if row is None:
        login = f"LOGIN PASSWORD '{verifier(password)}'" if password else "NOLOGIN"
        try:
            await connection.execute(f'CREATE ROLE "{role}" {login}')
        except asyncpg.InsufficientPrivilegeError as error:
            raise Refused(
                f"the role {role} is missing, and IRONCART_DATABASE_URL may not make it: let it"
                " create roles, or make this one beforehand"
            ) from error
        return f"role {role}: created" + ("" if password else ", without a login")
    if row["mighty"]:
        raise Refused(f"the role {role} may do more than a service should: make it an ordinary one")
    if row["others"]:
        others = ", ".join(f'"{each}"' for each in row["others"])
        raise Refused(
            f"the role {role} may do what others may, since it is a member:"
            f' REVOKE {others} FROM "{role}"'
        )
    return ""


async def _set_password(connection: Connection, service: str, password: str) -> str:
    role = role_of(service)
    try:
        await connection.execute(f"ALTER ROLE \"{role}\" LOGIN PASSWORD '{verifier(password)}'")
    except asyncpg.InsufficientPrivilegeError as error:
        variable = f"IRONCART_{service.upper()}_ROLE_PASSWORD"
        raise Refused(
            f"{role} does not log in with {variable}, and IRONCART_DATABASE_URL may not change its"
            f" password: change it by hand, or leave {variable} unset"
        ) from error
    return f"role {role}: password set"


async def _logs_in(url: str, service: str, password: str) -> bool:
    """Whether a role's password is the right one; tried, since only a superuser could look."""
    try:
        with translated():
            connection = await asyncpg.connect(
                url, user=role_of(service), password=password, timeout=LOGIN_TIMEOUT_S
            )
    except Refused as error:
        return isinstance(error.__cause__, asyncpg.InsufficientPrivilegeError)
    await connection.close()
    return True


async def _ensure_privileges(
    connection: Connection,
    schema: str,
    wanted: Mapping[str, Collection[Privilege]],
    services: Iterable[str],
) -> list[str]:
    """Bring what roles and everybody may do in one schema, and with its database, to what is due.

    A role of ours with a schema elsewhere in this database connects to it, too.
    """
    base = await connection.fetchrow(_DATABASE)
    assert base is not None
    held = {
        Held(row["role"], Privilege(row["schema"], row["name"], row["field"], row["verb"]))
        for row in await connection.fetch(_HELD, schema, [role_of(each) for each in services])
    }
    due = {
        Held(role_of(service), each)
        for service, some in wanted.items()
        for each in (*some, CONNECT, Privilege(schema, "", "", "USAGE"))
        if each.schema in ("", schema)
    }
    surplus = {each for each in held - due if each.role == PUBLIC or each.privilege != CONNECT}
    lacking = due - held
    told: list[str] = []
    closed_to_us = {"": not base["ours"], "public": not base["public_ours"]}
    foreign = {each for each in surplus | lacking if closed_to_us.get(each.privilege.schema)}
    if foreign:
        surplus, lacking = surplus - foreign, lacking - foreign
        told = [f"database {base['name']}: not ours, so it stays as open as its owner left it"]
        if Held(PUBLIC, CONNECT) not in held:
            told += [
                f"{each.role} cannot connect to it: have its owner GRANT"
                f" {_what(each, base['name'])} TO {each.role}"
                for each in sorted(foreign & (due - held))
                if each.privilege == CONNECT
            ]
    changes = [f"REVOKE {_what(each, base['name'])} FROM {each.role}" for each in sorted(surplus)]
    changes += [f"GRANT {_what(each, base['name'])} TO {each.role}" for each in sorted(lacking)]
    if changes:
        await connection.execute(";".join(changes))
        counts = f"{len(lacking)} privileges granted, {len(surplus)} taken away"
        told.append(f"{schema}: {counts}")
    return told


def _what(held: Held, database: str) -> str:
    schema, table, column, verb = held.privilege
    if table:
        return f'{verb}{f" ({column})" if column else ""} ON TABLE "{schema}"."{table}"'
    return f'{verb} ON SCHEMA "{schema}"' if schema else f'{verb} ON DATABASE "{database}"'


def verifier(password: str) -> str:
    """What Postgres keeps of a password (RFC 5803): the password itself is in no statement, so in
    no log and no statistics of statements."""
    salt = secrets.token_bytes(SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", hashlib.sha256)).digest()
    server = hmac.digest(salted, b"Server Key", hashlib.sha256)
    kept = [base64.b64encode(each).decode() for each in (salt, stored, server)]
    return f"SCRAM-SHA-256${ITERATIONS}:{kept[0]}${kept[1]}:{kept[2]}"


# More than a role of a service may be: such a one could take every other right for itself.
_ROLE = """
SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
       OR pg_has_role(rolname, current_user, 'MEMBER') AS mighty,
       ARRAY(SELECT o.rolname::text FROM pg_auth_members m JOIN pg_roles o ON o.oid = m.roleid
             WHERE m.member = r.oid ORDER BY 1) AS others
FROM pg_roles r WHERE rolname = $1
"""
_DATABASE = """
SELECT datname AS name, pg_has_role(datdba, 'USAGE') AS ours,
       (SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = 'public')
         AS public_ours
FROM pg_database WHERE datname = current_database()
"""
# Owners aside. Of the schema `public` only what everybody may do in it.
_HELD = f"""
SELECT coalesce(r.rolname, '{PUBLIC}') AS role, schema, name, field, privilege_type AS verb
FROM (
  SELECT '' AS schema, '' AS name, '' AS field, a.grantee, a.privilege_type
  FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) AS a
  WHERE d.datname = current_database()
  UNION ALL
  SELECT n.nspname, '', '', a.grantee, a.privilege_type
  FROM pg_namespace n, aclexplode(n.nspacl) AS a WHERE n.nspname IN ($1, 'public')
  UNION ALL
  SELECT n.nspname, c.relname, '', a.grantee, a.privilege_type
  FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid, aclexplode(c.relacl) AS a
  WHERE n.nspname = $1
  UNION ALL
  SELECT n.nspname, c.relname, f.attname, a.grantee, a.privilege_type
  FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid
  JOIN pg_attribute f ON f.attrelid = c.oid AND NOT f.attisdropped, aclexplode(f.attacl) AS a
  WHERE n.nspname = $1
) AS held LEFT JOIN pg_roles r ON r.oid = grantee
WHERE grantee = 0 OR r.rolname = ANY($2::text[])
"""  # noqa: S608 - a constant
