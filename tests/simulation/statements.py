"""The toolkit's SQL, recognised by its own text and answered in Python.

A statement that nobody here knows ends the run: the simulation must not guess.
"""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg

from ironcart.toolkit import leases
from ironcart.toolkit.history import events, outbox

Row = dict[str, Any]
NEVER = float("-inf")

# What the toy service asks of its own tables.
COUNT = "toy: add one to each of these counters, and return them"
ACCEPT = "toy: keep these idempotency keys, and return those that are new"


class UnknownStatement(BaseException):
    """Not an `Exception`: no loop may take it for a handler's bug."""


class Tables:
    """The rows of one schema; `rows` are replaced and never changed, so a snapshot is cheap."""

    NAMES = ("inbox", "failures", "batches", "events", "jobs", "parked", "counts", "accepted")

    def __init__(self, clock: Callable[[], float], note: Callable[[str], None]) -> None:
        self.now, self.note = clock, note
        self.rows: dict[str, dict[Any, Row]] = {name: {} for name in self.NAMES}
        self.batch_no = 0  # A sequence: a rollback does not give its numbers back.
        # What sessions show that they live, and the session that a statement runs in.
        self.holders: dict[object, str] = {}
        self.session: object = None

    def snapshot(self) -> "Tables":
        """What there is now."""
        taken = Tables(self.now, self.note)
        taken.rows = {name: dict(rows) for name, rows in self.rows.items()}
        return taken

    def restore(self, taken: "Tables") -> None:
        """Go back to what there was."""
        self.rows = taken.rows

    def change(self, table: str, key: Any, **values: Any) -> None:
        """Update one row."""
        self.rows[table][key] = self.rows[table][key] | values


Answer = Callable[..., list[Row]]
_answers: dict[str, Answer] = {}


def _words(statement: str) -> str:
    return " ".join(statement.split())


def answers_to(*statements: str) -> Callable[[Answer], Answer]:
    """Register the answer to some statements, spaces and line breaks aside."""

    def register(answer: Answer) -> Answer:
        for statement in statements:
            _answers[_words(statement)] = answer
        return answer

    return register


def answer(tables: Tables, statement: str, arguments: Sequence[Any]) -> list[Row]:
    """Run one statement."""
    found = _answers.get(statement) or _answers.get(_words(statement))
    if found is None:
        raise UnknownStatement(_words(statement))
    _answers[statement] = found
    return found(tables, *arguments)


@answers_to("SELECT 1")
def _nothing(_: Tables) -> list[Row]:
    return [{"?column?": 1}]


# Inbox.


@answers_to(
    "INSERT INTO inbox (event_id, stream, stream_seq)"
    " SELECT id, $1, seq FROM unnest($2::uuid[], $3::bigint[]) AS u(id, seq)"
    " ON CONFLICT DO NOTHING RETURNING event_id"
)
def _admit(t: Tables, stream: str, keys: Sequence[uuid.UUID], seqs: Sequence[int]) -> list[Row]:
    fresh = []
    for key, seq in zip(keys, seqs, strict=True):
        if key not in t.rows["inbox"]:
            t.rows["inbox"][key] = {"stream": stream, "stream_seq": seq}
            fresh.append({"event_id": key})
        else:
            t.note("duplicate absorbed by the inbox")
    return fresh


@answers_to("DELETE FROM inbox WHERE event_id = ANY($1::uuid[])")
def _withdraw(t: Tables, keys: Sequence[uuid.UUID]) -> list[Row]:
    for key in keys:
        t.rows["inbox"].pop(key, None)
    return []


@answers_to(
    "INSERT INTO failures AS f (stream, stream_seq, attempts, error) VALUES ($1, $2, 1, $3)"
    " ON CONFLICT (stream, stream_seq) DO UPDATE"
    " SET attempts = f.attempts + 1, error = $3, last_failed_at = now() RETURNING attempts"
)
def _count_failure(t: Tables, stream: str, seq: int, error: str) -> list[Row]:
    attempts = t.rows["failures"].get((stream, seq), {"attempts": 0})["attempts"] + 1
    t.rows["failures"][stream, seq] = {"attempts": attempts, "error": error}
    return [{"attempts": attempts}]


# Events and batches.


@answers_to(events._APPEND)
def _append(t: Tables, n: int, *columns: Sequence[Any]) -> list[Row]:
    t.batch_no += 1
    names = ("id", "aggregate_id", "version", "type", "subject", "traceparent", "body")
    for pos, values in enumerate(zip(*columns, strict=True)):
        row = dict(zip(names, values, strict=True))
        key = (row["aggregate_id"], row["version"])
        if key in t.rows["events"]:
            raise asyncpg.UniqueViolationError(f"events_pkey: {key}")
        t.rows["events"][key] = row | {"batch_no": t.batch_no, "pos": pos, "seq": None}
    t.rows["batches"][t.batch_no] = {
        "batch_no": t.batch_no,
        "n": n,
        "first_seq": None,
        "claimed_at": NEVER,
        "recorded_at": t.now(),
    }
    return [{"batch_no": t.batch_no}]


@answers_to(
    "UPDATE events e SET stream_seq = s.seq FROM unnest($1::bigint[], $2::int[],"
    " $3::bigint[]) AS s(batch_no, pos, seq)"
    " WHERE e.batch_no = s.batch_no AND e.batch_pos = s.pos"
)
def _mark_events(t: Tables, *columns: Sequence[int]) -> list[Row]:
    found = {(no, pos): seq for no, pos, seq in zip(*columns, strict=True)}
    for key, row in list(t.rows["events"].items()):
        if (seq := found.get((row["batch_no"], row["pos"]))) is not None:
            t.change("events", key, seq=seq)
    return []


@answers_to(
    "UPDATE batches b SET first_seq = m.seq FROM unnest($1::bigint[], $2::bigint[])"
    " AS m(batch_no, seq) WHERE b.batch_no = m.batch_no"
)
def _mark(t: Tables, numbers: Sequence[int], seqs: Sequence[int]) -> list[Row]:
    for number, seq in zip(numbers, seqs, strict=True):
        t.change("batches", number, first_seq=seq)
    return []


@answers_to(
    "SELECT count(*) AS waiting,"
    " coalesce(extract(epoch FROM now() - min(recorded_at)), 0)::float8 AS age_s"
    " FROM batches WHERE first_seq IS NULL"
)
def _measure_outbox(t: Tables) -> list[Row]:
    old = [row["recorded_at"] for row in t.rows["batches"].values() if row["first_seq"] is None]
    return [{"waiting": len(old), "age_s": t.now() - min(old, default=t.now())}]


@answers_to(outbox._CLAIM)
def _claim(t: Tables, after_s: float, claim_s: float, *limits: Any) -> list[Row]:
    most, events_max, in_hand = limits
    now, upto, claimed = t.now(), 0, []
    old = [
        row
        for number, row in sorted(t.rows["batches"].items())
        if row["first_seq"] is None
        and row["recorded_at"] < now - after_s
        and row["claimed_at"] < now - claim_s
        and number not in in_hand
    ]
    for row in old[:most]:
        upto += row["n"]
        if upto <= events_max or upto == row["n"]:
            t.note("batch swept")
            t.change("batches", row["batch_no"], claimed_at=now)
            claimed.append({"batch_no": row["batch_no"], "n": row["n"]})
    return claimed


@answers_to(outbox._GIVE_BACK)
def _give_back_batches(t: Tables, numbers: Sequence[int]) -> list[Row]:
    for number in numbers:
        t.change("batches", number, claimed_at=NEVER)
    return []


@answers_to(outbox._EVENTS)
def _events(t: Tables, numbers: Sequence[int]) -> list[Row]:
    found = [row for row in t.rows["events"].values() if row["batch_no"] in numbers]
    return sorted(found, key=lambda row: (row["batch_no"], row["pos"]))


# Jobs.


def _new_job(t: Tables, key: str, due_at: float, lease: uuid.UUID | None) -> bool:
    if key in t.rows["jobs"]:
        return False
    row = {"key": key, "due_at": due_at, "lease": lease, "attempts": 0, "created_at": t.now()}
    t.rows["jobs"][key] = row
    return True


@answers_to(leases.ADD_LEASED)
def _add_leased(t: Tables, keys: Sequence[str], lease_s: float, lease: uuid.UUID) -> list[Row]:
    return [{"key": key} for key in keys if _new_job(t, key, t.now() + lease_s, lease)]


@answers_to(leases.ADD_DUE)
def _add_due(t: Tables, keys: Sequence[str]) -> list[Row]:
    return [{"key": key} for key in keys if _new_job(t, key, t.now(), None)]


@answers_to(leases.LEASE)
def _lease(t: Tables, most: int, lease_s: float, lease: uuid.UUID) -> list[Row]:
    now = t.now()
    due = [row for row in t.rows["jobs"].values() if row["due_at"] <= now]
    due.sort(key=lambda row: (row["attempts"], row["due_at"]))
    for row in due[:most]:
        if row["lease"] is not None:
            t.note("job taken over")
        t.change("jobs", row["key"], lease=lease, due_at=now + lease_s)
    return [{"key": row["key"], "attempts": row["attempts"]} for row in due[:most]]


@answers_to(leases.LOCK)
def _lock(t: Tables, keys: Sequence[str]) -> list[Row]:
    rows = t.rows["jobs"]
    return [{"key": key, "lease": rows[key]["lease"]} for key in keys if key in rows]


@answers_to(leases.RENEW)
def _renew(t: Tables, keys: Sequence[str], lease_s: float) -> list[Row]:
    for key in set(keys) & set(t.rows["jobs"]):
        t.change("jobs", key, due_at=t.now() + lease_s, attempts=0)
    return []


@answers_to(leases.GIVE_BACK)
def _give_back_jobs(t: Tables, keys: Sequence[str]) -> list[Row]:
    for key in set(keys) & set(t.rows["jobs"]):
        t.change("jobs", key, lease=None, due_at=t.now(), attempts=0)
    return []


@answers_to(leases.POSTPONE)
def _postpone(
    t: Tables,
    keys: Sequence[str],
    leases: Sequence[uuid.UUID],
    _: Sequence[str],
    delays: Sequence[float],
    counts: Sequence[int],
) -> list[Row]:
    for key, lease, delay_s, count in zip(keys, leases, delays, counts, strict=True):
        row = t.rows["jobs"].get(key)
        if row is not None and row["lease"] == lease:
            later = t.now() + delay_s
            t.change("jobs", key, lease=None, due_at=later, attempts=row["attempts"] + count)
    return []


@answers_to(leases.MEASURE)
def _measure_jobs(t: Tables) -> list[Row]:
    rows, now = t.rows["jobs"].values(), t.now()
    oldest_s = now - min((row["created_at"] for row in rows), default=now)
    due = sum(row["due_at"] <= now for row in rows)
    return [{"open": len(rows), "due": due, "oldest_s": oldest_s}]


def _holder(row: Row) -> str | None:
    return str(row["lease"])[:8] if row["lease"] and row["lease"].version == 8 else None


@answers_to(leases.LIVE)
def _live(t: Tables, _: int, number: int) -> list[Row]:
    t.holders[t.session] = number.to_bytes(4, "big", signed=True).hex()
    return [{"locked": True}]


@answers_to(leases.HOLDERS)
def _holders(t: Tables) -> list[Row]:
    rows = [row for row in t.rows["jobs"].values() if row["due_at"] > t.now()]
    return [{"holder": each} for each in sorted({h for h in map(_holder, rows) if h})]


@answers_to(leases.LIVING)
def _living(t: Tables, _: int) -> list[Row]:
    return [{"holder": holder} for holder in t.holders.values()]


@answers_to(leases.DUE_AT_ONCE)
def _due_at_once(t: Tables, dead: Sequence[str]) -> list[Row]:
    rows = t.rows["jobs"].values()
    found = [row["key"] for row in rows if row["due_at"] > t.now() and _holder(row) in dead]
    for key in found:
        t.note("lease of the dead ended")
        t.change("jobs", key, due_at=t.now())
    return [{"key": key} for key in found]


@answers_to("DELETE FROM jobs WHERE key = ANY($1::text[])")
def _delete_jobs(t: Tables, keys: Sequence[str]) -> list[Row]:
    for key in keys:
        t.rows["jobs"].pop(key, None)
    return []


# The toy service.


@answers_to(COUNT)
def _count(t: Tables, what: str, names: Sequence[str]) -> list[Row]:
    found = []
    for name in names:
        n = t.rows["counts"].get((what, name), {"n": 0})["n"] + 1
        t.rows["counts"][what, name] = {"n": n}
        found.append({"name": name, "n": n})
    return found


@answers_to(ACCEPT)
def _accept(t: Tables, keys: Sequence[str]) -> list[Row]:
    fresh = [key for key in keys if key not in t.rows["accepted"]]
    t.rows["accepted"] |= {key: {} for key in fresh}
    return [{"key": key} for key in fresh]
