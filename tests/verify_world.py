"""A small shop's whole trace, made by hand: streams, tables, gateway, mailbox and load log.

Tests spoil one thing in it and look whether the checker notices.
"""

import hashlib
import json
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from ironcart.verify.facts import STREAMS

SUBJECTS = {
    "OrderCreated": "orders.created",
    "OrderCancellationRequested": "orders.cancellation_requested",
    "OrderConfirmed": "orders.confirmed",
    "OrderRejected": "orders.rejected",
    "OrderCancelled": "orders.cancelled",
    "StockReserved": "inventory.reserved",
    "StockRejected": "inventory.rejected",
    "StockCommitted": "inventory.committed",
    "StockReleased": "inventory.released",
    "StockAdjusted": "inventory.adjusted",
    "PaymentSucceeded": "payments.succeeded",
    "PaymentFailed": "payments.failed",
    "PaymentVoided": "payments.voided",
    "PaymentRefunded": "payments.refunded",
    "RefundIssued": "payments.refund_issued",
    "NotificationSent": "notifications.sent",
    "NotificationFailed": "notifications.failed",
}
SERVICE_OF = {
    "orders": "ORDERS",
    "inventory": "INVENTORY",
    "payments": "PAYMENTS",
    "notifications": "NOTIFICATIONS",
}
NAMESPACE = uuid.UUID("00000000-0000-4000-8000-00000000c0de")
PREFIX = "load-test-"


@dataclass
class Message:
    """One message of a stream; its sequence is its place in the list, from 1."""

    subject: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def change(self, **fields: Any) -> None:
        """Rewrite fields of the envelope, or of the data where the envelope has none such."""
        event = json.loads(self.body)
        for name, value in fields.items():
            (event if name in event else event["data"])[name] = value
        self.body = json.dumps(event).encode()


@dataclass
class Row:
    """One row of a service's events table."""

    service: str
    id: uuid.UUID
    aggregate: str
    version: int
    type: str
    subject: str
    body: bytes
    batch_no: int
    seq: int | None


@dataclass
class World:
    """Everything verify reads; `holes` are messages that the broker lost.

    `older` is what a stream held before it was made again (None: the audit never saw it), and
    `resolved` the sequences of dead letters that a person has dealt with.
    """

    streams: dict[str, list[Message]] = field(default_factory=lambda: {s: [] for s in STREAMS})
    holes: set[tuple[str, int]] = field(default_factory=set)
    history: list[Row] = field(default_factory=list)
    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    stock: dict[str, list[int]] = field(default_factory=dict)
    reservations: dict[str, str] = field(default_factory=dict)
    payments: dict[str, dict[str, Any]] = field(default_factory=dict)
    charges: list[dict[str, Any]] = field(default_factory=list)
    notifications: list[dict[str, Any]] = field(default_factory=list)
    mail: list[dict[str, Any]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(
        default_factory=lambda: [{"kind": "run", "key_prefix": PREFIX}]
    )
    audit: list[list[Any]] | None = None
    early: list[str] = field(default_factory=list)
    older: dict[str, list[Message | None]] = field(default_factory=dict)
    resolved: set[int] = field(default_factory=set)
    versions: dict[tuple[str, str], int] = field(default_factory=dict)

    def emit(
        self, service: str, kind: str, aggregate: str, data: dict[str, Any], cause: str | None
    ) -> str:
        """Commit, publish and return the id of one event."""
        version = self.versions.get((service, aggregate), 0) + 1
        self.versions[service, aggregate] = version
        event_id = uuid.uuid5(NAMESPACE, f"{service}/{aggregate}/{version}")
        event = {
            "id": str(event_id),
            "type": kind,
            "aggregate_id": aggregate,
            "data": data,
            "timestamp": "2026-11-20T22:14:05.123456Z",
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "version": version,
        } | ({"causation_id": cause} if cause else {})
        body = json.dumps(event, default=float).encode()
        stream = self.streams[SERVICE_OF[service]]
        stream.append(Message(SUBJECTS[kind], body, {"Nats-Msg-Id": str(event_id)}))
        self.history.append(
            Row(
                service=service,
                id=event_id,
                aggregate=aggregate,
                version=version,
                type=kind,
                subject=SUBJECTS[kind],
                body=body,
                batch_no=len(self.history) + 1,
                seq=len(stream),
            )
        )
        return str(event_id)

    def fill(self, sku: str, quantity: int) -> None:
        """Put stock on the shelf."""
        self.emit(
            "inventory", "StockAdjusted", sku, {"sku": sku, "delta": quantity, "reason": "x"}, None
        )
        self.stock.setdefault(sku, [0, 0])[0] += quantity

    def find(self, stream: str, order_id: str, kind: str) -> Message:
        """Return the message of an order's event."""
        for message in self.streams[stream]:
            event = json.loads(message.body)
            if event["aggregate_id"] == order_id and event["type"] == kind:
                return message
        raise LookupError(kind)

    def place(self, number: int, fate: str = "confirmed", *, sku: str = "LOAD-0001") -> str:
        """Carry one order to its end: confirmed, out_of_stock, declined, cancelled or refunded."""
        order_id = f"ORD-{number}"
        key = f"{PREFIX}{number}"
        items = [{"sku": sku, "quantity": 2, "unit_price": 19.99}]
        self._accept(key, order_id, items)
        data = {"order_id": order_id, "customer_id": "C-1", "amount": 39.98}
        whole = data | {"currency": "EUR", "items": items}
        created = self.emit("orders", "OrderCreated", order_id, whole, None)
        status = {"confirmed": "confirmed", "cancelled": "cancelled", "refunded": "cancelled"}.get(
            fate, "rejected"
        )
        self.orders[order_id] = {
            "status": status,
            "customer_id": "C-1",
            "amount_minor": 3998,
            "currency": "EUR",
            "items": items,
            "contact": "v1.cipher",
        }
        self.keys[key] = order_id
        if fate == "out_of_stock":
            short = whole | {"short": [{"sku": sku, "quantity": 2}]}
            cause = self.emit("inventory", "StockRejected", order_id, short, created)
        else:
            reserved = self.emit("inventory", "StockReserved", order_id, whole, created)
            cause = self._pay(order_id, fate, reserved, created)
        end = {"confirmed": "OrderConfirmed", "cancelled": "OrderCancelled"}.get(
            status, "OrderRejected"
        )
        ended = self.emit("orders", end, order_id, data | {"reason": fate}, cause)
        self._finish_stock(order_id, fate, items, ended)
        self._notify(order_id, status, ended)
        return order_id

    def _accept(self, key: str, order_id: str, items: list[dict[str, Any]]) -> None:
        body = {"customer_id": "C-1", "currency": "EUR", "items": items, "email": "a@b.example"}
        about = {"key": key, "attempt": 1}
        self.log.append({"kind": "sent", **about, "body": body})
        self.log.append(
            {"kind": "answer", **about, "status": 202, "order_id": order_id, "answer_sha256": key}
        )

    def _pay(self, order_id: str, fate: str, reserved: str, created: str) -> str:
        money = {"order_id": order_id, "amount": 39.98, "currency": "EUR", "reference": "pi"}
        intent = f"pi_{order_id}"
        charge = {
            "id": intent,
            "order_id": order_id,
            "amount": 3998,
            "currency": "eur",
            "captured": 0 if fate == "declined" else 3998,
            "refunded": 3998 if fate == "refunded" else 0,
            "keys": ["k"],
        }
        payment = {
            "state": {"confirmed": "succeeded", "declined": "failed", "cancelled": "voided"}.get(
                fate, "refunded"
            ),
            "amount_minor": 3998,
            "currency": "EUR",
            "intent_id": intent,
            "refunded_minor": charge["refunded"],
        }
        self.payments[order_id] = payment
        if fate == "cancelled":
            payment["intent_id"] = None
        else:
            self.charges.append(charge)
        if fate in {"confirmed", "refunded"}:
            cause = self.emit("payments", "PaymentSucceeded", order_id, money, reserved)
        if fate in {"cancelled", "refunded"}:
            asked = self.emit(
                "orders",
                "OrderCancellationRequested",
                order_id,
                {"order_id": order_id, "reason": "customer"},
                created,
            )
            kind = "PaymentVoided" if fate == "cancelled" else "PaymentRefunded"
            cause = self.emit("payments", kind, order_id, money, asked)
        if fate == "declined":
            cause = self.emit("payments", "PaymentFailed", order_id, money, reserved)
        return cause

    def _finish_stock(
        self, order_id: str, fate: str, items: list[dict[str, Any]], cause: str
    ) -> None:
        lines = [{"sku": item["sku"], "quantity": item["quantity"]} for item in items]
        data = {"order_id": order_id, "lines": lines}
        if fate == "out_of_stock":
            self.reservations[order_id] = "rejected"
        elif fate == "confirmed":
            self.emit("inventory", "StockCommitted", order_id, data, cause)
            self.reservations[order_id] = "committed"
            for line in lines:
                self.stock[line["sku"]][0] -= line["quantity"]
        else:
            self.emit("inventory", "StockReleased", order_id, data, cause)
            self.reservations[order_id] = "released"

    def _notify(self, order_id: str, status: str, cause: str) -> None:
        message_id = f"<{order_id}@ironcart>"
        self.mail.append(
            {"message_id": message_id, "to": "x", "subject": status, "order_id": order_id}
        )
        self.notifications.append(
            {
                "order_id": order_id,
                "template": status,
                "state": "sent",
                "message_id": message_id,
            }
        )
        data = {"order_id": order_id, "channel": "mail", "template": status}
        self.emit("notifications", "NotificationSent", order_id, data, cause)

    def trail(self) -> list[list[Any]]:
        """Return audit rows [stream, seq, subject, event_id, body, hash, version, type, aggregate],
        chained; kept once."""
        if self.audit is None:
            self.audit = []
            for stream, messages in sorted(self.streams.items()):
                last = hashlib.sha256(stream.encode()).digest()
                lost = Message("", b"")
                older = [message or lost for message in self.older.get(stream, ())]
                for seq, message in enumerate(older + messages, start=1):
                    if (stream, seq) in self.holes:
                        continue
                    event_id, *names = _names(message.body)
                    names = names if message.subject else ["lost", ""]
                    last = hashlib.sha256(
                        last
                        + seq.to_bytes(8, "big")
                        + message.subject.encode()
                        + b"\x00"
                        + event_id.encode()
                        + b"\x00"
                        + hashlib.sha256(message.body).digest()
                    ).digest()
                    row = [stream, seq, message.subject, event_id, message.body, last, 1, *names]
                    self.audit.append(row)
        return self.audit

    def write_log(self, data: Path) -> None:
        """Write the load log where verify looks for it."""
        folder = data / "load"
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(line) + "\n" for line in self.log)
        (folder / "20261120T221405Z-1.jsonl").write_text(lines)


def clean_world() -> World:
    """Return a shop in which every kind of order has come to a good end."""
    world = World()
    world.fill("LOAD-0001", 100)
    world.fill("LOAD-0002", 5)
    fates = ("confirmed", "out_of_stock", "declined", "cancelled", "refunded", "confirmed")
    for number, fate in enumerate(fates, start=1):
        world.place(number, fate)
    return world


def _names(body: bytes) -> list[str]:
    """Id, type and aggregate of an event, as audit reads them."""
    try:
        fields = json.loads(body, parse_float=Decimal)
        return [str(fields.get(name, "")) for name in ("id", "type", "aggregate_id")]
    except (ValueError, AttributeError):
        return ["", "", ""]
