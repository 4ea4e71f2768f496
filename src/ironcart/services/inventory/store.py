"""What inventory keeps: one method is one statement, for a whole batch."""

from collections.abc import Collection, Mapping, Sequence

import msgspec
from msgspec import Struct

from ironcart.events import Line
from ironcart.toolkit.database import Connection
from ironcart.toolkit.outcomes import LostRace

_lines = msgspec.json.Decoder(tuple[Line, ...])


class Reservation(Struct, frozen=True):
    """Where the stock of one order stands."""

    order_id: str
    state: str
    lines: tuple[Line, ...]
    version: int


class Shelf(Struct, frozen=True):
    """Where one SKU stands."""

    sku: str
    on_hand: int
    reserved: int
    version: int

    @property
    def available(self) -> int:
        """Units that may still be promised."""
        return self.on_hand - self.reserved


class Change(Struct, frozen=True):
    """What a batch does to one SKU, summed."""

    on_hand: int = 0
    reserved: int = 0

    def __add__(self, other: "Change") -> "Change":
        """Both of them."""
        return Change(self.on_hand + other.on_hand, self.reserved + other.reserved)


class Store:
    """Speaks through one open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def reservations(self, order_ids: Collection[str]) -> dict[str, Reservation]:
        """Lock what is known of these orders, in order, so that batches cannot deadlock."""
        rows = await self._connection.fetch(
            "SELECT order_id, state, lines, version FROM reservations"
            " WHERE order_id = ANY($1::text[]) ORDER BY order_id FOR UPDATE",
            list(order_ids),
        )
        return {
            row["order_id"]: Reservation(
                row["order_id"], row["state"], _lines.decode(row["lines"]), row["version"]
            )
            for row in rows
        }

    async def shelves(self, skus: Collection[str]) -> dict[str, Shelf]:
        """Lock these SKUs, in order; one that was never stocked is left out."""
        rows = await self._connection.fetch(
            "SELECT sku, on_hand, reserved, version FROM stock"
            " WHERE sku = ANY($1::text[]) ORDER BY sku FOR UPDATE",
            list(skus),
        )
        return {row["sku"]: Shelf(*row) for row in rows}

    async def add(self, reservations: Sequence[Reservation]) -> None:
        """Keep orders met for the first time; raises `LostRace` when another replica was first."""
        status = await self._connection.execute(
            "INSERT INTO reservations (order_id, state, lines, version)"
            " SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::int[])"
            " ON CONFLICT DO NOTHING",
            *_columns(reservations),
        )
        if status != f"INSERT 0 {len(reservations)}":
            raise LostRace("another replica met one of these orders first")

    async def change(self, reservations: Sequence[Reservation]) -> None:
        """Move known orders on."""
        await self._connection.execute(
            "UPDATE reservations r SET state = u.state, version = u.version, updated_at = now()"
            " FROM unnest($1::text[], $2::text[], $3::bytea[], $4::int[])"
            " AS u(order_id, state, lines, version) WHERE r.order_id = u.order_id",
            *_columns(reservations),
        )

    async def move(self, changes: Mapping[str, Change]) -> None:
        """Move units of locked SKUs: one summed update, however many orders share a SKU."""
        await self._connection.execute(
            "UPDATE stock s SET on_hand = s.on_hand + u.on_hand,"
            " reserved = s.reserved + u.reserved, updated_at = now()"
            " FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS u(sku, on_hand, reserved)"
            " WHERE s.sku = u.sku",
            list(changes),
            [change.on_hand for change in changes.values()],
            [change.reserved for change in changes.values()],
        )

    async def lock_shelf(self, sku: str) -> Shelf:
        """Lock one SKU, which exists from now on."""
        await self._connection.execute(
            "INSERT INTO stock (sku, on_hand) VALUES ($1, 0) ON CONFLICT DO NOTHING", sku
        )
        return (await self.shelves([sku]))[sku]

    async def told_of_order(self, order_id: str) -> int:
        """The version of what was told last of an order, 0 when there is nothing.

        Whoever holds the lock of the SKU of that name sees the last one.
        """
        version: int | None = await self._connection.fetchval(
            "SELECT version FROM reservations WHERE order_id = $1", order_id
        )
        return version or 0

    async def put_shelf(self, shelf: Shelf) -> None:
        """Keep one locked SKU as it now is."""
        await self._connection.execute(
            "UPDATE stock SET on_hand = $2, version = $3, updated_at = now() WHERE sku = $1",
            shelf.sku,
            shelf.on_hand,
            shelf.version,
        )

    async def fold_in(self, changes: Mapping[str, Change], versions: Mapping[str, int]) -> None:
        """Move units as facts say, of SKUs that exist from now on; what is lacking is owed.

        The order in which facts are folded in does not matter: what was owed is paid first.
        """
        skus = sorted({*changes, *versions})
        await self._connection.execute(
            "INSERT INTO stock (sku, on_hand) SELECT sku, 0 FROM unnest($1::text[]) AS sku"
            " ON CONFLICT DO NOTHING",
            skus,
        )
        moved = [changes.get(sku, Change()) for sku in skus]
        await self._connection.execute(
            _FOLD_IN,
            skus,
            [change.on_hand for change in moved],
            [change.reserved for change in moved],
            [versions.get(sku, 0) for sku in skus],
        )

    async def pay_what_is_owed(self) -> list[tuple[str, int, int]]:
        """Owe nothing more; returns `(SKU, next version, units)` for what was owed, in order.

        The units are on hand already. Safe to repeat.
        """
        rows = await self._connection.fetch(_PAY_WHAT_IS_OWED)
        return sorted((row["sku"], row["version"], row["owed"]) for row in rows)

    async def shelf(self, sku: str) -> Shelf | None:
        """Read one SKU as it is."""
        row = await self._connection.fetchrow(
            "SELECT sku, on_hand, reserved, version FROM stock WHERE sku = $1", sku
        )
        return None if row is None else Shelf(*row)

    async def page(self, after: str, limit: int) -> list[Shelf]:
        """Read SKUs in order, after one."""
        rows = await self._connection.fetch(
            "SELECT sku, on_hand, reserved, version FROM stock"
            " WHERE sku > $1 ORDER BY sku LIMIT $2",
            after,
            limit,
        )
        return [Shelf(*row) for row in rows]


_FOLD_IN = """
UPDATE stock s SET on_hand = greatest(t.on_hand, t.reserved), reserved = t.reserved,
  owed = greatest(t.reserved - t.on_hand, 0), version = greatest(s.version, t.version),
  updated_at = now()
FROM (SELECT sku, b.on_hand - b.owed + u.on_hand AS on_hand, b.reserved + u.reserved AS reserved,
             u.version
      FROM stock b JOIN unnest($1::text[], $2::bigint[], $3::bigint[], $4::int[])
        AS u(sku, on_hand, reserved, version) USING (sku)) AS t
WHERE s.sku = t.sku
"""
_PAY_WHAT_IS_OWED = """
WITH due AS (
  SELECT sku, owed, 1 + greatest(version, (SELECT version FROM reservations
                                           WHERE order_id = sku)) AS version
  FROM stock WHERE owed > 0 FOR UPDATE)
UPDATE stock s SET owed = 0, version = due.version, updated_at = now()
FROM due WHERE s.sku = due.sku RETURNING due.sku, due.version, due.owed
"""


def _columns(reservations: Sequence[Reservation]) -> tuple[list[object], ...]:
    return (
        [each.order_id for each in reservations],
        [each.state for each in reservations],
        [msgspec.json.encode(each.lines) for each in reservations],
        [each.version for each in reservations],
    )
