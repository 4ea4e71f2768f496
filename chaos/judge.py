"""What came of a run: each row's figures from the orders themselves, and the verdict. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.follow import Sent
from chaos.row import Felt

ORDER_ID = re.compile(r"ORD-[\w-]+")
# Orders sent this long before a fault belong to it too, unless another fault was nearer.
BEFORE_S = 2.0
LOST, DOUBLE_CHARGED, OVERSOLD = "lost", "double-charged", "oversold"
HARMS = {LOST: "I1", DOUBLE_CHARGED: "I2", OVERSOLD: "I4"}


@dataclass(frozen=True, slots=True)
class Ended:
    """An order as the database has it at the end; times are seconds since the epoch."""

    created_at: float
    ended_at: float | None


@dataclass(slots=True)
class Injection:
    """One turn of a row, and what was counted while it lasted."""

    row: str
    felt: Felt
    duplicates: int = 0
    in_flight: int = 0
    recovered_s: float | None = None
    calm: bool = True
    harms: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HARMS, 0))


@dataclass(slots=True)
class Total:
    """All injections of a row."""

    name: str
    times: int = 0
    bit: int = 0
    in_flight: int = 0
    duplicates: int = 0
    recovered_s: float | None = None
    harms: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HARMS, 0))
    proof: str = ""


def place(
    injections: Sequence[Injection], sent: Iterable[Sent], ended: Mapping[str, Ended]
) -> None:
    """Write into each injection which orders it met, and when the last of them came to its end.

    An order belongs to the injection during which (or up to `BEFORE_S` before which) it was first
    sent. In flight are those that were accepted and not at their end when the fault began.
    """
    orders = [(each, ended.get(each.order_id)) for each in sent if each.order_id]
    previous_heal = 0.0
    for injection in injections:
        felt = injection.felt
        begin = max(previous_heal, felt.injected_at - BEFORE_S)
        last: float | None = None
        for order, end in orders:
            if end is None:
                continue
            until = end.ended_at if end.ended_at is not None else float("inf")
            injection.in_flight += end.created_at <= felt.injected_at < until
            if begin <= order.first_sent_at <= felt.healed_at and end.ended_at is not None:
                last = max(last or 0.0, end.ended_at)
        if last is not None:
            injection.recovered_s = max(0.0, last - felt.healed_at)
        previous_heal = felt.healed_at


def blame(
    injections: Sequence[Injection], sent: Iterable[Sent], report: Mapping[str, Any]
) -> dict[str, int]:
    """Count the harm verify found; orders it names are laid at the door of their injection."""
    found = dict.fromkeys(HARMS, 0)
    when = {each.order_id: each.first_sent_at for each in sent}
    for harm, name in HARMS.items():
        finding = next((f for f in report.get("findings", []) if f["name"] == name), None)
        if finding is None or finding["ok"]:
            continue
        for fault in finding["faults"]:
            if harm == OVERSOLD and fault["kind"] != "oversold":
                continue
            found[harm] += fault["count"]
            for order_id in ORDER_ID.findall(" ".join(fault["examples"])):
                for injection in injections:
                    felt = injection.felt
                    if felt.injected_at - BEFORE_S <= when.get(order_id, 0) <= felt.healed_at:
                        injection.harms[harm] += 1
    return found


def totals(injections: Iterable[Injection]) -> list[Total]:
    """Add the injections of each row up, rows in order of their names."""
    found: dict[str, Total] = {}
    for each in injections:
        row = found.setdefault(each.row, Total(each.row))
        row.times += 1
        row.bit += each.felt.bit
        row.in_flight += each.in_flight
        row.duplicates += each.duplicates
        if each.recovered_s is not None:
            row.recovered_s = max(row.recovered_s or 0.0, each.recovered_s)
        for harm, count in each.harms.items():
            row.harms[harm] += count
        if each.felt.bit or not row.proof:
            row.proof = "; ".join(each.felt.seen + [f"NOT {what}" for what in each.felt.missed])
    return sorted(found.values(), key=lambda row: row.name)


def complaints(
    rows: Iterable[Total],
    *,
    verified: int,
    broken: Sequence[str],
    accepted: int,
    load_code: int,
    up_code: int,
) -> list[str]:
    """Say what is wrong with a run; nothing when all is well."""
    found = [f"{row.name}: never bit ({row.proof})" for row in rows if not row.bit]
    if verified:
        names = f"invariants broken: {', '.join(broken)}" if broken else "it could not judge"
        found.append(f"verify exited with {verified}: {names}")
    if not accepted:
        found.append("no order was accepted: there was no load")
    if load_code:
        found.append(f"the load generator exited with {load_code}")
    if up_code:
        found.append(f"ironcart up exited with {up_code}")
    return found
