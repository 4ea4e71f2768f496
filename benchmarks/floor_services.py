"""What each of the five services writes and says of an order, and no more: see `floor`."""

import asyncio
import os
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from itertools import islice

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from benchmarks.floor_hand import (
    CAUSE,
    CONTEXT,
    DIGEST,
    PLACE,
    SAMPLES,
    TRACE_ID,
    Hand,
    Loop,
    admit,
    lines_of,
    order_ids,
)
from benchmarks.stage import CONTACT_CHARACTERS, shopping
from ironcart.events import (
    KINDS,
    SUBJECTS,
    Line,
    NotificationSent,
    OrderConfirmed,
    OrderCreated,
    PaymentSucceeded,
    StockCommitted,
    StockReserved,
)
from ironcart.services.audit import store as audit
from ironcart.services.inventory import store as inventory
from ironcart.services.notifications import store as notifications
from ironcart.services.orders import store as orders
from ironcart.services.payments import store as payments
from ironcart.toolkit import leases
from ironcart.toolkit.broker import Delivery
from ironcart.toolkit.envelope import encode_json
from ironcart.toolkit.history import Commit, stored_trace
from ironcart.toolkit.jobs import LEASE_S

# Orders that are accepted and not confirmed, in batches: enough that nobody waits for work.
WINDOW_BATCHES = 20
AMOUNT_MINOR = 12_345
CALLER, CUSTOMER, CURRENCY, CARD = "anonymous", "LOAD-C00001", "EUR", "pm_card_visa"
CONTACT, FINGERPRINT = "c" * CONTACT_CHARACTERS, b"\x00" * 32
_END_JOBS = "DELETE FROM jobs WHERE key = ANY($1::text[])"


def new_order_id() -> str:
    """An id as long as the real ones, which sorts by time as they do."""
    found = f"ORD-{time.time_ns() // 1_000_000:011X}{secrets.token_hex(8).upper()}"
    return found[: len(PLACE)]


class Orders(Hand):
    """Accepts, and moves orders on."""

    name, streams = "orders", ("ORDERS", "INVENTORY", "PAYMENTS")

    def loops(self, count: int) -> list[Loop]:
        """Accept so many, and hear of them."""
        self._room = asyncio.Semaphore(WINDOW_BATCHES)
        self._confirmed = 0
        return [
            self._accept(count),
            self.consume("ORDERS", count, self._own),
            self.consume("INVENTORY", count, self._reserved),
            self.consume("PAYMENTS", count, self._paid),
        ]

    async def _accept(self, count: int) -> None:
        items = encode_json([Line("LOAD-0001", 1), Line("LOAD-0002", 1)])
        async with asyncio.TaskGroup() as group:
            while count:
                await self._room.acquire()
                ids = [new_order_id() for _ in range(min(count, self.batch))]
                count -= len(ids)
                answer = encode_json({"order_id": PLACE, "status": "pending", "amount": 123.45})
                keys = [orders.Key(CALLER, f"floor-{i}", FINGERPRINT, i, answer) for i in ids]
                new = [_order(order_id, items) for order_id in ids]
                async with self.database.transaction() as connection:
                    store = orders.Store(connection)
                    await store.claim(keys)
                    await store.add(new)
                    commit = await self.append(connection, (OrderCreated, 1, ids))
                group.create_task(self.publish(commit))

    async def _own(self, _batch: Sequence[Delivery]) -> None:
        """Acknowledged unread."""

    async def _reserved(self, batch: Sequence[Delivery]) -> None:
        async with self.database.transaction() as connection:
            store = orders.Store(connection)
            known = await store.lock(await admit(connection, batch))
            reserved = [
                replace(row, state="reserved", status="reserved")
                for row in known.values()
                if row.state == "pending"  # What payments says may be here first.
            ]
            if reserved:
                await store.move(reserved)

    async def _paid(self, batch: Sequence[Delivery]) -> Commit:
        async with self.database.transaction() as connection:
            store = orders.Store(connection)
            ids = await admit(connection, batch)
            known = await store.lock(ids)
            confirmed = [
                replace(row, state="confirmed", status="confirmed", version=2)
                for row in known.values()
            ]
            await store.move(confirmed)
            commit = await self.append(connection, (OrderConfirmed, 2, ids))
        self._confirmed += len(ids)
        while self._confirmed >= self.batch:
            self._confirmed -= self.batch
            self._room.release()
        return commit


def _order(order_id: str, items: bytes) -> orders.Order:
    return orders.Order(
        order_id=order_id,
        caller=CALLER,
        customer_id=CUSTOMER,
        state="pending",
        status="pending",
        amount_minor=AMOUNT_MINOR,
        currency=CURRENCY,
        items=items,
        payment_method=None,
        contact=CONTACT,
        reason=None,
        version=1,
        trace_id=TRACE_ID,
    )


class Inventory(Hand):
    """Reserves and commits."""

    name, streams = "inventory", ("ORDERS",)

    def loops(self, count: int) -> list[Loop]:
        """Take each order twice: created and confirmed."""
        self._lines = [lines_of(created) for created in islice(shopping(), SAMPLES)]
        self._met = {OrderCreated: 0, OrderConfirmed: 0}
        return [self.consume("ORDERS", 2 * count, self._deal)]

    async def _deal(self, batch: Sequence[Delivery]) -> Commit:
        created, confirmed = SUBJECTS[OrderCreated], SUBJECTS[OrderConfirmed]
        async with self.database.transaction() as connection:
            store = inventory.Store(connection)
            ids = await admit(connection, batch)
            subjects = [each.subject for each in batch]
            new = [i for i, subject in zip(ids, subjects, strict=True) if subject == created]
            sure = [i for i, subject in zip(ids, subjects, strict=True) if subject == confirmed]
            await store.reservations(ids)
            taken, left = self._next(OrderCreated, new), self._next(OrderConfirmed, sure)
            changes: dict[str, inventory.Change] = {}
            for lines, sign in ((taken, 1), (left, -1)):
                for line in (line for each in lines for line in each):
                    on_hand = min(0, sign * line.quantity)
                    change = inventory.Change(on_hand, sign * line.quantity)
                    changes[line.sku] = changes.get(line.sku, inventory.Change()) + change
            await store.shelves({*changes, *ids})
            if new:
                await store.add(_reservations(new, taken, "reserved", 1))
            if sure:
                await store.change(_reservations(sure, left, "committed", 2))
            await store.move(changes)
            return await self.append(connection, (StockReserved, 1, new), (StockCommitted, 2, sure))

    def _next(self, kind: type[Struct], ids: Sequence[str]) -> list[tuple[Line, ...]]:
        """The lines of the next orders: the same in the same turn, so that stock adds up."""
        first = self._met[kind]
        self._met[kind] += len(ids)
        return [self._lines[(first + n) % SAMPLES] for n in range(len(ids))]


def _reservations(
    ids: Sequence[str], lines: Sequence[tuple[Line, ...]], state: str, version: int
) -> list[inventory.Reservation]:
    return [
        inventory.Reservation(order_id, state, each, version)
        for order_id, each in zip(ids, lines, strict=True)
    ]


class Payments(Hand):
    """Notes what is to be charged; then two steps, as for an intent that is made and confirmed."""

    name, streams = "payments", ("INVENTORY",)

    def loops(self, count: int) -> list[Loop]:
        """Take orders in, and settle them."""
        return [self.consume("INVENTORY", count, self._take_in), self.settle(count)]

    async def _take_in(self, batch: Sequence[Delivery]) -> None:
        async with self.database.transaction() as connection:
            store = payments.Store(connection)
            ids = await admit(connection, batch)
            await store.lock(ids)
            await store.add([_payment(order_id) for order_id in ids])
            await connection.fetch(leases.ADD_LEASED, ids, LEASE_S, uuid.uuid4())
        self._to_settle.put_nowait(ids)

    async def called(self, ids: Sequence[str]) -> None:
        """Keep the intents; then that they are paid."""
        async with self.database.transaction() as connection:
            store = payments.Store(connection)
            await leases.lock(connection, ids)
            known = await store.lock(ids)
            made = [replace(row, intent_id=f"pi_{row.order_id[-24:]}") for row in known.values()]
            await store.move(made)
            await connection.execute(leases.RENEW, ids, LEASE_S)
        async with self.database.transaction() as connection:
            store = payments.Store(connection)
            await leases.lock(connection, ids)
            known = await store.lock(ids)
            paid = [replace(row, state="succeeded", version=1) for row in known.values()]
            await store.move(paid)
            await connection.execute(_END_JOBS, ids)
            commit = await self.append(connection, (PaymentSucceeded, 1, ids))
        await self.publish(commit)


def _payment(order_id: str) -> payments.Payment:
    return payments.Payment(
        order_id=order_id,
        state="charging",
        amount_minor=AMOUNT_MINOR,
        currency=CURRENCY,
        payment_method=CARD,
        intent_id=None,
        generation=0,
        refunded_minor=0,
        decline_code=None,
        version=0,
        trace_id=TRACE_ID,
        traceparent=stored_trace(CONTEXT),
        causation_id=CAUSE.causation_id,
    )


class Notifications(Hand):
    """Notes what is to be told; then that it is."""

    name, streams = "notifications", ("ORDERS",)

    def loops(self, count: int) -> list[Loop]:
        """Take orders in, and settle them."""
        return [self.consume("ORDERS", count, self._take_in), self.settle(count)]

    async def _take_in(self, batch: Sequence[Delivery]) -> None:
        async with self.database.transaction() as connection:
            ids = await admit(connection, batch)
            await notifications.Store(connection).add([_notice(order_id) for order_id in ids])
            jobs = [f"{order_id}/confirmed" for order_id in ids]
            await connection.fetch(leases.ADD_LEASED, jobs, LEASE_S, uuid.uuid4())
            await notifications.EndpointStore(connection).enabled()
        self._to_settle.put_nowait(ids)

    async def called(self, ids: Sequence[str]) -> None:
        """Keep and tell that the mails are sent."""
        jobs = [f"{order_id}/confirmed" for order_id in ids]
        async with self.database.transaction() as connection:
            store = notifications.Store(connection)
            await leases.lock(connection, jobs)
            due = await store.lock_orders(ids)
            await store.versions(ids)
            await store.settle(
                [(key, notifications.Told(DIGEST, f"<{key[0]}@floor>", None)) for key in due]
            )
            await connection.execute(_END_JOBS, jobs)
            commit = await self.append(connection, (NotificationSent, 1, ids))
        await self.publish(commit)


def _notice(order_id: str) -> notifications.Notice:
    return notifications.Notice(
        order_id, "confirmed", CUSTOMER, "123.45", CURRENCY, None, CONTACT, CAUSE
    )


class Audit(Hand):
    """Keeps every message, and a link for each."""

    name, streams = "audit", ("ORDERS", "INVENTORY", "PAYMENTS", "NOTIFICATIONS")

    def loops(self, count: int) -> list[Loop]:
        """Take every event of every order."""
        sizes = {"ORDERS": 2, "INVENTORY": 2, "PAYMENTS": 1, "NOTIFICATIONS": 1}
        return [self.consume(each, count * n, self._keep) for each, n in sizes.items()]

    async def _keep(self, batch: Sequence[Delivery]) -> None:
        entries = [
            audit.Entry(
                each.stream,
                each.stream_seq,
                each.subject,
                each.headers["Nats-Msg-Id"],
                KINDS[each.subject].__name__,
                order_id,
                msgspec.json.encode(each.headers).decode(),
                each.body,
                round(each.stored_at * 1_000_000),
            )
            for each, order_id in zip(batch, order_ids(batch), strict=True)
        ]
        stream = batch[0].stream
        async with self.database.transaction() as connection:
            store = audit.Store(connection)
            await store.lock_chain(stream)
            await store.head(stream)
            await store.insert(entries)
            await store.insert_links(stream, [(each.stream_seq, os.urandom(32)) for each in batch])


HANDS: Mapping[str, type[Hand]] = {
    hand.name: hand for hand in (Orders, Inventory, Payments, Notifications, Audit)
}
