"""How far each stream has come, as far as anybody remembers: where a new one has to begin.

A stream that is made again begins above every sequence that was ever given out, so that no
sequence, in a history or in the audit's chain, ever stands for two messages.
"""

from collections.abc import Mapping

from ironcart.events import OWNERS, STREAMS
from ironcart.toolkit.broker import Broker
from ironcart.toolkit.broker.provisioning import stream_exists
from ironcart.toolkit.database import Database

# A whole history is gone through: that takes minutes where there are millions of events.
PATIENCE_S = 3_600


def patient(url: str, schema: str, who: str) -> Database:
    """A database whose statements may take as long as a large history needs."""
    session = {"statement_timeout": f"{PATIENCE_S}s", "idle_in_transaction_session_timeout": "0"}
    return Database(url, schema, who, session=session, command_timeout_s=PATIENCE_S)


async def floors(databases: Mapping[str, str]) -> dict[str, int]:
    """The highest sequence of each stream that the services' databases know; 0 for none."""
    found = {stream.name: 0 for stream in STREAMS}
    for owner, (stream, kinds) in OWNERS.items():
        found[stream] = await _published(databases[owner], owner, list(kinds.values()))
    database = patient(databases["audit"], "audit", "floors")
    try:
        for row in await database.fetch(_AUDITED, list(found)):
            found[row["stream"]] = max(found[row["stream"]], row["seq"])
    finally:
        await database.close()
    return found


async def _published(url: str, owner: str, subjects: list[str]) -> int:
    database = patient(url, owner, "floors")
    try:
        row = await database.fetchrow(_PUBLISHED, subjects)
    finally:
        await database.close()
    return (row and row["seq"]) or 0


async def before(url: str, owner: str, first_seq: int) -> int:
    """Count the events of a history that lie before a sequence of its stream."""
    database = patient(url, owner, "floors")
    try:
        row = await database.fetchrow(BEFORE, first_seq, list(OWNERS[owner][1].values()))
    finally:
        await database.close()
    assert row is not None
    return int(row["n"])


async def beginnings(broker: Broker, databases: Mapping[str, str]) -> dict[str, int]:
    """The first sequence of each stream that is missing at the broker, by name."""
    missing = [each.name for each in STREAMS if not await stream_exists(broker, each.name)]
    if not missing:
        return {}
    known = await floors(databases)
    return {name: known[name] + 1 for name in missing if known[name]}


_PUBLISHED = """
SELECT max(coalesce(e.stream_seq, b.first_seq + e.batch_pos)) AS seq
FROM batches b JOIN events e USING (batch_no) WHERE e.subject = ANY($1::text[])
"""
BEFORE = """
SELECT count(*) AS n FROM events e JOIN batches b USING (batch_no)
WHERE coalesce(e.stream_seq, b.first_seq + e.batch_pos) < $1 AND e.subject = ANY($2::text[])
"""
_AUDITED = """
SELECT s.stream, coalesce((SELECT max(stream_seq) FROM entries WHERE stream = s.stream), 0) AS seq
FROM unnest($1::text[]) AS s(stream)
"""
