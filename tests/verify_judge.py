"""Put what a world shows before the checks, as the collectors would."""

import json
from pathlib import Path
from typing import Any

from ironcart.verify.chain import Entry
from ironcart.verify.checks.audit import Trail
from ironcart.verify.checks.histories import Histories, Recorded
from ironcart.verify.facts import (
    Charge,
    DeadLetter,
    Facts,
    Notification,
    Order,
    Payment,
    Stock,
    StreamFacts,
)
from ironcart.verify.findings import Finding
from ironcart.verify.loadlog import read_logs
from ironcart.verify.outside import judge
from ironcart.verify.streams import is_letter
from ironcart.verify.wire import basket_of, lines_of, loads, read_event
from verify_world import SERVICE_OF, World

TERMINAL_WITHIN_S = 5.0


def examine(
    world: World,
    folder: Path,
    *,
    expected_dead_letters: int = 0,
    moving: bool = False,
    change: Any = None,
) -> dict[str, Finding]:
    """Collect the world as verify would, without servers, and return its findings by name.

    `change(facts)` may spoil what no table or stream of the world holds.
    """
    world.write_log(folder)
    facts = Facts(log=read_logs(folder))
    facts.log_after = facts.log
    older = {name: len(world.older.get(name, ())) for name in world.streams}
    _fill_streams(world, facts, older)
    _fill_tables(world, facts)
    facts.moving = moving
    histories = Histories(facts.streams, facts.dead_letters, moving=moving)
    for row in world.history:
        histories.add(
            Recorded(
                service=row.service,
                id=row.id.bytes,
                aggregate=row.aggregate,
                subject=row.subject,
                version=row.version,
                body=row.body,
                place=(row.batch_no, 0),
                seq=row.seq and row.seq + older[SERVICE_OF[row.service]],
            )
        )
    facts.pending = histories.pending
    trail = Trail(facts.streams, moving=moving)
    for entry in world.trail():
        trail.add(Entry(*entry))
    trail.finish()
    if change:
        change(facts)
    findings = judge(
        facts,
        histories,
        trail,
        expected_dead_letters=expected_dead_letters,
        terminal_within_s=TERMINAL_WITHIN_S,
        settle_s=1,
    )
    return {finding.name: finding for finding in findings}


def _fill_streams(world: World, facts: Facts, older: dict[str, int]) -> None:
    for name, messages in world.streams.items():
        first = older[name] + 1
        events = [
            read_event(name, seq, message.subject, message.body)
            for seq, message in enumerate(messages, start=first)
            if (name, seq) not in world.holes
        ]
        last = older[name] + len(messages)
        facts.streams[name] = StreamFacts(name, first, last, len(events), events)
    facts.dead_letters = [
        DeadLetter(
            event.subject,
            message.headers.get("Ironcart-Reason", ""),
            event.id,
            seq=event.seq,
            resolved=event.seq in world.resolved,
        )
        for event, message in zip(
            facts.streams["DEADLETTERS"].events, world.streams["DEADLETTERS"], strict=True
        )
        if is_letter(message.subject)
    ]


def _fill_tables(world: World, facts: Facts) -> None:
    for order_id, row in world.orders.items():
        items = loads(json.dumps(row["items"]))
        money = (row["amount_minor"], row["currency"])
        facts.orders[order_id] = Order(
            order_id,
            row["status"],
            money,
            basket_of(row["customer_id"], money, items),
            lines_of(items),
            row["contact"] is not None,
        )
    facts.keys = dict(world.keys)
    facts.stock = {sku: Stock(*levels) for sku, levels in world.stock.items()}
    facts.reservations = dict(world.reservations)
    for order_id, row in world.payments.items():
        money = (row["amount_minor"], row["currency"])
        facts.payments[order_id] = Payment(
            order_id, row["state"], money, row["intent_id"] or "", row["refunded_minor"]
        )
    facts.charges = [
        Charge(
            charge["id"],
            charge["order_id"],
            charge["amount"],
            charge["currency"].upper(),
            charge["captured"],
            charge["refunded"],
        )
        for charge in world.charges
    ]
    facts.notifications = [
        Notification(row["order_id"], row["state"], row["message_id"].strip("<>"))
        for row in world.notifications
    ]
    for mail in world.mail:
        facts.mail.setdefault(mail["order_id"], []).append(mail["message_id"].strip("<>"))
    facts.leftovers.early_orders = list(world.early)


def faults_of(world: World, folder: Path, name: str, **options: Any) -> dict[str, int]:
    """Return the faults of one invariant, by kind."""
    return examine(world, folder, **options)[name].faults.counts
