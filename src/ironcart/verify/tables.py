"""Whether audit's tables are plain ones, in which whoever may read sees all rows, and the same."""

from typing import Any

TABLES = ("entries", "links", "checkpoints")
# What each of these could do: answer by a query, hide rows by who asks, answer or change otherwise
# than was said, have rows of other tables, keep rows out, and have two rows at one place.
PLAIN = """
SELECT c.relname AS name, c.relkind::text AS kind,
       c.relrowsecurity OR EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid) AS "row security",
       EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid) AS rules,
       EXISTS (SELECT FROM pg_inherits WHERE c.oid IN (inhparent, inhrelid)) AS inheritance,
       EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal) AS triggers,
       NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary AND indisvalid)
         AS "no primary key"
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'audit' AND c.relname = ANY($1::text[]) ORDER BY c.relname"""
# An index is enough to find them.
NOWHERE = "SELECT EXISTS (SELECT FROM audit.{0} WHERE stream IS NULL)"
OF_A_TABLE = "r"


async def faults_of(connection: Any) -> list[str]:
    """Say what is not as provisioning made it; a table that is missing is not looked at."""
    faults = []
    for row in await connection.fetch(PLAIN, TABLES):
        found = dict(row)
        name, kind = found.pop("name"), found.pop("kind")
        if kind != OF_A_TABLE:
            faults.append(f"audit.{name} is no plain table: others may be shown other rows")
            continue
        odd = [what for what, is_so in found.items() if is_so]
        if odd:
            faults.append(f"audit.{name} has {', '.join(odd)}: others may be shown other rows")
    nowhere = [
        f"audit.{name} has a row of no stream"
        for name in ("entries", "links")
        if await connection.fetchval(NOWHERE.format(name))
    ]
    return faults + nowhere
