"""What must hold once everything has healed, whatever happened before."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from ironcart.toolkit.envelope import decode
from simulation.parked import TO_DO
from simulation.statements import Row

if TYPE_CHECKING:
    from simulation.schedule import Schedule

PARKED = ("park", "bug")


def unfinished(schedule: "Schedule") -> list[str]:
    """What is still open: empty when everything is quiet."""
    left = []
    if (missing := len(schedule.pings) - len(schedule.outside.accepted)) > 0:
        left.append(f"{missing} customers wait")
    for name, server in schedule.databases.items():
        rows = server.tables.rows
        if unpublished := [no for no, row in rows["batches"].items() if row["first_seq"] is None]:
            left.append(f"{name} has unpublished batches {unpublished}")
        left += [
            f"{name} has {row['aggregate_id']} {row['state']}"
            for row in rows["parked"].values()
            if row["state"] in TO_DO or (row["state"] == "parked" and row["letter_seq"] is None)
        ]
        if rows["jobs"]:
            left.append(f"{name} has open jobs {sorted(rows['jobs'])}")
    for (stream, name), consumer in schedule.jetstream.consumers.items():
        if consumer.open:
            left.append(f"{name} has {consumer.open} open messages of {stream}")
    if any(toy.process.frozen for toy in schedule.running.values()):
        left.append("a process is frozen")
    if not {"alpha", "beta"} <= set(schedule.running):
        left.append("a process is being started")
    return left


def judge(schedule: "Schedule") -> list[str]:
    """Say what is wrong with how it ended."""
    return [
        *_histories(schedule, "alpha", "PINGS"),
        *_histories(schedule, "beta", "PONGS"),
        *_accepted(schedule),
        *_effects(schedule),
        *_dead_letters(schedule),
        *_left_open(schedule),
    ]


def _rows(schedule: "Schedule", service: str, table: str) -> dict[Any, Row]:
    return schedule.databases[service].tables.rows[table]


def _histories(schedule: "Schedule", service: str, stream: str) -> list[str]:
    """Every committed event travelled once, where the history says, and nothing else did."""
    wrong = []
    log = schedule.jetstream.streams[stream].log
    times = Counter(decode(stored.body).id for stored in log)
    batches = _rows(schedule, service, "batches")
    ids = set()
    for row in _rows(schedule, service, "events").values():
        key = str(row["id"])
        ids.add(key)
        if times[key] == 0:
            wrong.append(f"{service} never published {row['aggregate_id']}")
        elif times[key] > 1 and schedule.exactly_once_in_stream:
            wrong.append(f"{stream} has {row['aggregate_id']} {times[key]} times")
        first = batches[row["batch_no"]]["first_seq"]
        seq = row["seq"] or (first + row["pos"] if first else 0)
        if not 1 <= seq <= len(log) or decode(log[seq - 1].body).id != key:
            wrong.append(f"{service} believes that {row['aggregate_id']} is at {stream} {seq}")
    wrong += [
        f"{stream} holds what {service} never committed: {key}" for key in times if key not in ids
    ]
    return wrong


def _accepted(schedule: "Schedule") -> list[str]:
    said = {decode(stored.body).aggregate_id for stored in schedule.jetstream.streams["PINGS"].log}
    return [
        f"{name} was accepted and is lost" for name in schedule.outside.accepted if name not in said
    ]


def _effects(schedule: "Schedule") -> list[str]:
    """Each Ping took effect once, a parked one never; so did its job, and alpha's hearing of it."""
    wrong = []
    beta = {key: row["n"] for key, row in _rows(schedule, "beta", "counts").items()}
    alpha = {key: row["n"] for key, row in _rows(schedule, "alpha", "counts").items()}
    for ping in schedule.pings:
        mended = ping.name in schedule.outside.mended
        dealt, job = int(ping.action not in PARKED or mended), int(ping.action == "job")
        for what, found, wanted in (
            ("dealt with", beta.get(("dealt", ping.name), 0), dealt),
            ("settled", beta.get(("settled", ping.name), 0), job),
            ("heard of", alpha.get(("heard", ping.name), 0), dealt),
        ):
            if found != wanted:
                wrong.append(f"{ping.name} ({ping.action}) was {what} {found} times, not {wanted}")
        wrong += [
            f"{ping.name} ({ping.action}) had no call {step}, or should not have"
            for step in (1, 2)
            if bool(schedule.outside.calls[ping.name, step]) != bool(job)
        ]
    return wrong


def _dead_letters(schedule: "Schedule") -> list[str]:
    """Whatever was parked has one, and nobody else: an outage is not poison."""
    log = schedule.jetstream.streams["DEADLETTERS"].log
    found = {decode(stored.body).aggregate_id for stored in log}
    wanted = {ping.name for ping in schedule.pings if ping.action in PARKED}
    wrong = [f"{name} was parked without a dead letter" for name in sorted(wanted - found)]
    return wrong + [f"{name} was parked for nothing" for name in sorted(found - wanted)]


def _left_open(schedule: "Schedule") -> list[str]:
    return [
        f"{name} has a transaction open"
        for name, server in schedule.databases.items()
        if server.holder is not None
    ]
