"""Orders that do not move, and what each one is waiting for: read across all services' tables."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ironcart.toolkit.database import Database

STUCK_AFTER_S = 60
SHOWN_MAX = 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where one order stands in every service; "" where it is not known."""

    order_id: str
    status: str
    age_s: int
    reservation: str = ""
    payment: str = ""
    job: str = ""
    parked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stuck:
    """How many orders have not ended in time, and the oldest of them with the reason."""

    count: int
    oldest: Sequence[Place]


# What has not been heard of, by the reservation and the payment as they stand ("" for none).
_UNHEARD = {
    ("", ""): "inventory has not heard of it",
    ("reserved", ""): "payments has not heard that it is reserved",
    ("rejected", ""): "orders has not heard that it is out of stock",
}


def why(place: Place) -> str:
    """Say what an order is waiting for, as far as the tables tell."""
    if place.parked:
        return f"set aside by {' and '.join(place.parked)}: see `ironcart deadletters list`"
    if place.job:
        return f"payment is {place.payment}: {place.job}"
    if not place.payment and place.status == "cancelling":
        return "payments has not heard of the cancellation"
    settled = f"the payment is {place.payment}" if place.payment else f"it is {place.reservation}"
    told = f"orders and inventory are not in step: {settled}"
    if place.payment:
        told = f"orders has not heard that {settled}"
    return _UNHEARD.get((place.reservation, place.payment), told)


async def find(databases: Mapping[str, str], *, after_s: int = STUCK_AFTER_S) -> Stuck:
    """Find the orders that have not ended `after_s` seconds after they were accepted."""
    opened = {
        name: Database(databases[name], name, "doctor")
        for name in ("orders", "inventory", "payments", "notifications")
    }
    try:
        return await _find(opened, after_s)
    finally:
        await asyncio.gather(*(database.close() for database in opened.values()))


async def _find(opened: Mapping[str, Database], after_s: int) -> Stuck:
    counted = await opened["orders"].fetchrow(_COUNT, after_s)
    assert counted is not None
    rows = await opened["orders"].fetch(_OLDEST, after_s, SHOWN_MAX)
    ids = [row["order_id"] for row in rows]
    reservations = {
        row["order_id"]: row["state"] for row in await opened["inventory"].fetch(_RESERVED, ids)
    }
    payments = {row["order_id"]: row["state"] for row in await opened["payments"].fetch(_PAID, ids)}
    jobs = {row["key"]: _job(dict(row)) for row in await opened["payments"].fetch(_JOBS, ids)}
    parked: dict[str, list[str]] = {order_id: [] for order_id in ids}
    for service in ("orders", "inventory", "payments"):
        for row in await opened[service].fetch(_PARKED, ids):
            parked[row["aggregate_id"]].append(service)
    return Stuck(
        counted["n"],
        [
            Place(
                row["order_id"],
                row["status"],
                row["age_s"],
                reservations.get(row["order_id"], ""),
                payments.get(row["order_id"], ""),
                jobs.get(row["order_id"], ""),
                tuple(parked[row["order_id"]]),
            )
            for row in rows
        ],
    )


def _job(row: Mapping[str, Any]) -> str:
    if row["error"] is None:
        return "the gateway is being asked" if row["leased"] else "the gateway is to be asked"
    when = "now" if row["wait_s"] == 0 else f"in {row['wait_s']} s"
    return f"{row['error']} (attempt {row['attempts']}, again {when})"


_STUCK = """
FROM orders WHERE phase IN ('open', 'cancelling')
  AND created_at < now() - make_interval(secs => $1)
"""
_COUNT = f"SELECT count(*) AS n {_STUCK}"
_OLDEST = f"""
SELECT order_id, status, extract(epoch FROM now() - created_at)::int AS age_s {_STUCK}
ORDER BY created_at LIMIT $2
"""  # noqa: S608 - constants
_RESERVED = "SELECT order_id, state FROM reservations WHERE order_id = ANY($1::text[])"
_PAID = "SELECT order_id, state FROM payments WHERE order_id = ANY($1::text[])"
_JOBS = """
SELECT key, attempts, error, lease IS NOT NULL AS leased,
       greatest(0, extract(epoch FROM due_at - now()))::int AS wait_s
FROM jobs WHERE key = ANY($1::text[])
"""
_PARKED = """
SELECT DISTINCT aggregate_id FROM parked
WHERE aggregate_id = ANY($1::text[]) AND state IN ('parked', 'waiting')
"""
