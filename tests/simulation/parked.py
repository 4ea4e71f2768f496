"""The toolkit's SQL about what was set aside, answered in Python like the rest of it."""

import uuid
from collections.abc import Sequence
from typing import Any

from ironcart.toolkit.loop import parking, releases
from simulation.statements import Row, Tables, answers_to

OPEN = ("parked", "waiting", "released")
TO_DO = ("waiting", "released")


def _first(t: Tables, row: Row) -> bool:
    return not row["aggregate_id"] or not any(
        each["aggregate_id"] == row["aggregate_id"]
        and each["no"] < row["no"]
        and each["state"] in OPEN
        for each in t.rows["parked"].values()
    )


@answers_to(parking._BLOCKED)
def _blocked(t: Tables, aggregate_ids: Sequence[str]) -> list[Row]:
    rows = t.rows["parked"].values()
    found = {row["aggregate_id"] for row in rows if row["state"] in OPEN}
    return [{"aggregate_id": each} for each in found & set(aggregate_ids)]


@answers_to(parking._ADD)
def _add(t: Tables, *columns: Any) -> list[Row]:
    columns = (*columns[:8], [columns[8]] * len(columns[0]), *columns[9:])
    names = ["stream", "stream_seq", "subject", "headers", "body", "event_id", "aggregate_id"]
    names += ["type", "state", "reason", "error", "attempts"]
    for values in zip(*columns, strict=True):
        row = dict(zip(names, values, strict=True))
        places = {(each["stream"], each["stream_seq"]) for each in t.rows["parked"].values()}
        t.batch_no += 1
        if (row["stream"], row["stream_seq"]) not in places:
            row |= {"no": t.batch_no, "letter_seq": None, "due_at": t.now(), "changed_at": t.now()}
            t.rows["parked"][t.batch_no] = row | {"stored_at": t.now()}
    return []


@answers_to(parking._NOTE)
def _note(
    t: Tables, keys: Sequence[uuid.UUID], streams: Sequence[str], seqs: Sequence[int]
) -> list[Row]:
    for key, stream, seq in zip(keys, streams, seqs, strict=True):
        t.rows["inbox"].setdefault(key, {"stream": stream, "stream_seq": seq})
    return []


@answers_to(parking._MARK)
def _mark(t: Tables, stream: str, seq: int, letter_seq: int) -> list[Row]:
    for no, row in list(t.rows["parked"].items()):
        if (row["stream"], row["stream_seq"]) == (stream, seq):
            t.change("parked", no, letter_seq=letter_seq)
    return []


@answers_to(releases._MEASURE)
def _measure(t: Tables) -> list[Row]:
    states = [row["state"] for row in t.rows["parked"].values()]
    return [{state: states.count(state) for state in OPEN}]


@answers_to(releases._DUE)
def _due(t: Tables, most: int) -> list[Row]:
    rows = [
        row
        for row in t.rows["parked"].values()
        if row["state"] in TO_DO and row["due_at"] <= t.now() and _first(t, row)
    ]
    return sorted(rows, key=lambda row: row["no"])[:most]


@answers_to(releases._LOCK)
def _lock(t: Tables, no: int) -> list[Row]:
    row = t.rows["parked"][no]
    return [row] if row["state"] in TO_DO and _first(t, row) else []


@answers_to(releases._END)
def _end(t: Tables, no: int) -> list[Row]:
    t.note("parked message replayed")
    t.change("parked", no, state="replayed", changed_at=t.now())
    return []


@answers_to(releases._COUNT)
def _count(t: Tables, no: int) -> list[Row]:
    t.change("parked", no, attempts=t.rows["parked"][no]["attempts"] + 1)
    return [{"attempts": t.rows["parked"][no]["attempts"]}]


@answers_to(releases._PARK_AGAIN)
def _park_again(t: Tables, no: int, why: str) -> list[Row]:
    t.change("parked", no, state="parked", reason=why, error=why, changed_at=t.now())
    return []


@answers_to(releases._LATER)
def _later(t: Tables, no: int, delay_s: float) -> list[Row]:
    t.change("parked", no, due_at=t.now() + delay_s)
    return []


@answers_to(releases._WITHOUT_LETTER)
def _without_letter(t: Tables, after_s: float, most: int) -> list[Row]:
    rows = [
        row
        for row in t.rows["parked"].values()
        if row["letter_seq"] is None
        and row["state"] == "parked"
        and row["changed_at"] < t.now() - after_s
    ]
    for _ in rows:
        t.note("dead letter that came later")
    return sorted(rows, key=lambda row: row["no"])[:most]
