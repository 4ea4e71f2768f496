"""The defects themselves: each takes one defence away, by module and then by what it does to it.

Attribute errors are wanted here: a defect that does not fit the code any more must not pass for one
that was put in.
"""

import os
import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

Break = Callable[[Any], None]
SKIPPED_EVERY = 7
SHORT_LEASE_S = 6.0


def mark(what: str) -> None:
    """Leave a sign, so that the harness knows that the defect is really in."""
    if folder := os.environ.get("CHAOS_MARKS", ""):
        (Path(folder) / f"{os.getpid()}-{random.randrange(10**9)}").write_text(what)  # noqa: S311 - a name, no secret


def no_inbox(module: Any) -> None:
    """Everything counts as not seen before."""
    real = module.admit

    async def admit(connection: Any, stream: str, arrivals: Any) -> set[uuid.UUID]:
        await real(connection, stream, arrivals)
        return {key for key, _ in arrivals}

    module.admit = admit


def ack_before_commit(module: Any) -> None:
    """Messages are acknowledged when they are taken, before anything is written."""
    real = module.Puller.take

    async def take(self: Any, count_max: int) -> Any:
        batch = await real(self, count_max)
        for delivery in batch:
            await self.send(delivery, b"+ACK")
        return batch

    module.Puller.take = take


def no_look_back(module: Any) -> None:
    """A start does not notice that messages were acknowledged and never dealt with."""

    async def forgotten(_: Any) -> bool:
        return False

    module.Recovery._forgotten_inputs = forgotten  # noqa: SLF001


def no_recovery(module: Any) -> None:
    """A start does not notice that the database is older than what was told."""

    async def behind(_: Any) -> bool:
        return False

    module.Recovery.behind = behind


def no_sweeper(module: Any) -> None:
    """What the fast path leaves behind is never published."""

    async def sweep(_: Any) -> bool:
        return False

    module.Outbox.sweep = sweep


def one_shot_charge(module: Any) -> None:
    """An intent is created and confirmed in one call, under a new key each time."""
    real = module.Gateway._post  # noqa: SLF001 - broken into on purpose

    async def post(self: Any, path: str, key: str, **params: Any) -> Any:
        if path == "/v1/payment_intents":
            key = str(uuid.uuid4())
            params |= {"confirm": True, "off_session": True}
        return await real(self, path, key, **params)

    module.Gateway._post = post  # noqa: SLF001


def cancel_believed(module: Any) -> None:
    """A payment counts as voided without the gateway having been asked to close the door."""

    async def cancel(_self: Any, _intent_id: str, _attempts: int) -> Any:
        return module.Canceled()

    module.Gateway.cancel = cancel


def refund_believed(module: Any) -> None:
    """Money counts as given back without the gateway having been asked."""

    async def refund(_self: Any, *_: Any, **__: Any) -> Any:
        return module.Refunded()

    module.Gateway.refund = refund


def oversell(module: Any) -> None:
    """Whatever is ordered is reserved (the harness drops the constraint of the table, too)."""
    module.shortages = lambda _lines, _available: ()


def key_ignored(module: Any) -> None:
    """Every request is a new order, whatever its idempotency key."""
    real = module.accept

    async def accept(requests: Any, **others: Any) -> Any:
        return await real([replace(each, key=None) for each in requests], **others)

    module.accept = accept


def body_ignored(module: Any) -> None:
    """A used key answers with its order, whatever the body."""
    real = module._answer  # noqa: SLF001

    def answer(each: Any, known: Any, is_new: bool) -> Any:
        said = real(each, known, is_new)
        if isinstance(said, module.KeyReused):
            kept = known[each.request.caller, each.request.key]
            return module.Answer(kept.order_id, kept.answer, replayed=True)
        return said

    module._answer = answer  # noqa: SLF001


def answered_unstored(module: Any) -> None:
    """An order that could not be stored is answered as if it had been."""
    real = module.accept

    async def accept(requests: Any, **others: Any) -> Any:
        try:
            return await real(requests, **others)
        except Exception:  # noqa: BLE001 - that is the defect
            made = [module.prepare(each, others["new_id"](), None) for each in requests]
            return [module.Answer(each.order.order_id, each.body) for each in made]

    module.accept = accept


def audit_skips(module: Any) -> None:
    """One message in so many is never put into the trail."""
    real = module.record

    async def record(batch: Any, connection: Any) -> None:
        kept = [each for each in batch if each.stream_seq % SKIPPED_EVERY]
        if kept:
            await real(kept, connection)

    module.record = record


def audit_unchained(module: Any) -> None:
    """A link does not depend on the one before it, so that entries can be taken out unseen."""
    real = module.link
    module.link = lambda _previous, sealed: real(b"", sealed)


def new_message_id(module: Any) -> None:
    """A mail that is sent again is another mail."""

    class Shuffled:
        uuid4 = staticmethod(uuid.uuid4)
        UUID = uuid.UUID
        uuid5 = staticmethod(lambda _namespace, _name: uuid.uuid4())

    module.uuid = Shuffled


def short_lease(module: Any) -> None:
    """No defect: lets a job that died be taken over within a short run."""
    module.LEASE_S = SHORT_LEASE_S
    module.LEASE_LEFT_MIN_S = 1.0


def no_dead_letter(module: Any) -> None:
    """What can never succeed is dropped without a dead letter."""

    async def park(_broker: Any, _letter: Any) -> None:
        return None

    module.park = park


def outage_is_poison(module: Any) -> None:
    """What meets an outage of the database is set aside."""
    real = module.Attempt.split
    term = module.judge.__globals__["Term"]

    async def split(self: Any, messages: Any) -> Any:
        try:
            return await real(self, messages)
        except module.Unavailable as error:
            return [
                term(each.delivery, each.envelope.type, "an outage", str(error), 1)
                for each in messages
            ], None

    module.Attempt.split = split


def stock_kept(module: Any) -> None:
    """The stock of a cancelled order is never released."""
    module.TABLE = module.TABLE | {("reserved", module.OrderCancelled): module.AS_IS}


def broker_unsynced(module: Any) -> None:
    """The broker acknowledges before it syncs."""
    module.CONFIG = module.CONFIG.replace("sync_interval: always", "sync_interval: 2m")
    assert "2m" in module.CONFIG


def database_unsynced(module: Any) -> None:
    """The database says COMMIT before it syncs."""
    module.SETTINGS = module.SETTINGS | {
        "synchronous_commit": "off",
        "wal_writer_delay": "10s",
        "wal_writer_flush_after": "1GB",
    }


def sessions_unsynced(module: Any) -> None:
    """Nor do the services ask for more than the server has by default."""
    del module._SESSION["synchronous_commit"]  # noqa: SLF001


PAYMENTS = "ironcart.services.payments.gateway"
ORDERS = "ironcart.services.orders.handlers.accept"
AUDIT = "ironcart.services.audit.handlers.chain"
INVENTORY = "ironcart.services.inventory.handlers"

DEFECTS: dict[str, dict[str, Break]] = {
    "no inbox": {"ironcart.toolkit.history.inbox": no_inbox},
    "ack before commit, no look back": {
        "ironcart.toolkit.broker.puller": ack_before_commit,
        "ironcart.toolkit.recovery": no_look_back,
    },
    "no sweeper": {"ironcart.toolkit.history.outbox": no_sweeper},
    "one-shot charge, a key per attempt": {PAYMENTS: one_shot_charge},
    "voided without asking the gateway": {PAYMENTS: cancel_believed},
    "refunded without asking the gateway": {PAYMENTS: refund_believed},
    "reserved without looking": {INVENTORY: oversell},
    "idempotency key ignored": {ORDERS: key_ignored},
    "another body under a used key": {ORDERS: body_ignored},
    "answered 202 without storing": {ORDERS: answered_unstored},
    "audit skips messages": {AUDIT: audit_skips},
    "audit does not chain": {AUDIT: audit_unchained},
    "a new Message-ID for each attempt": {
        "ironcart.services.notifications.gateway.letters": new_message_id,
        "ironcart.toolkit.jobs": short_lease,
    },
    "dead letter not written": {"ironcart.toolkit.deadletters": no_dead_letter},
    "an outage is poison": {"ironcart.toolkit.loop.attempt": outage_is_poison},
    "stock of cancelled orders kept": {INVENTORY: stock_kept},
    "broker acknowledges before syncing": {"ironcart.embedded.nats_server": broker_unsynced},
    "database commits before syncing, no recovery": {
        "ironcart.embedded.postgres": database_unsynced,
        "ironcart.toolkit.database": sessions_unsynced,
        "ironcart.toolkit.recovery": no_recovery,
    },
}
