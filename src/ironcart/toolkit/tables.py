"""What the role of a service may do in the database: what its statements need, and no more."""

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

# Table -> privileges, as GRANT writes them; those of another schema's table as "schema.table".
Tables: TypeAlias = Mapping[str, str]

# What a service has told can be marked as published, and never be told otherwise: neither an event
# nor a message that was set aside can be changed or removed by whoever has a service's password.
TOOLKIT_TABLES: Final[Tables] = {
    "schema_migrations": "SELECT",
    "batches": "SELECT, INSERT, UPDATE (first_seq, claimed_at)",
    "events": "SELECT, INSERT, UPDATE (stream_seq)",
    "inbox": "SELECT, INSERT, DELETE",
    "failures": "SELECT, INSERT, UPDATE",
    "jobs": "SELECT, INSERT, UPDATE, DELETE",
    "parked": (
        "SELECT, INSERT, UPDATE (state, reason, error, attempts, letter_seq, due_at, changed_at)"
    ),
    "breakers": "SELECT, INSERT, UPDATE",
    "recoveries": "SELECT, INSERT, UPDATE",
}
_PRIVILEGE = re.compile(r"(SELECT|INSERT|UPDATE|DELETE)(?: \(([a-z_, ]+)\))?(?:, |$)")


class Privilege(NamedTuple):
    """One thing that a role may do; `column` is empty when it is the whole table."""

    schema: str
    table: str
    column: str
    verb: str


def role_of(service: str) -> str:
    """The role of a service in the database."""
    return f"ironcart_{service}"


def privileges(service: str, tables: Tables) -> set[Privilege]:
    """Everything that the role of `service` may do with tables; raises `ValueError` when a
    declaration cannot be read."""
    return {
        Privilege(schema or service, table, column, verb)
        for name, written in {**TOOLKIT_TABLES, **tables}.items()
        for schema, _, table in [name.rpartition(".")]
        for verb, column in _read(written)
    }


def _read(written: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(written):
        found = _PRIVILEGE.match(written, at)
        if found is None:
            raise ValueError(f"{written!r}: use SELECT, INSERT, UPDATE (a, b), DELETE")
        for column in (found[2] or "").split(", "):
            yield found[1], column
        at = found.end()
