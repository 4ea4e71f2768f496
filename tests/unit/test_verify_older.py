"""A stream that was made again is explained by the audit, or it is not; repairs are events."""

import json
import uuid
from pathlib import Path

from verify_judge import examine, faults_of
from verify_world import Message, Row, World, clean_world


def remade_world() -> World:
    """A shop whose ORDERS stream was lost and filled again from the service's history."""
    world = clean_world()
    messages = world.streams["ORDERS"]
    world.older["ORDERS"] = [Message(each.subject, each.body) for each in messages]
    return world


def test_a_stream_made_again_begins_above_what_the_audit_has_and_holds_it_all(
    tmp_path: Path,
) -> None:
    world = remade_world()

    findings = examine(world, tmp_path)

    assert [name for name, finding in findings.items() if not finding.ok] == []
    assert findings["I8"].figures["of older streams"] == len(world.streams["ORDERS"])


def test_messages_that_audit_never_saw_have_entries_that_say_so(tmp_path: Path) -> None:
    world = remade_world()
    world.older["ORDERS"][-3:] = [None, None, None]

    findings = examine(world, tmp_path)

    assert [name for name, finding in findings.items() if not finding.ok] == []
    assert findings["I8"].figures["never seen"] == 3


def test_an_event_only_the_audit_remembers_is_lost(tmp_path: Path) -> None:
    world = remade_world()
    stray = Message("orders.created", world.streams["ORDERS"][0].body)
    stray.change(id="another", aggregate_id="ORD-77")
    world.older["ORDERS"].append(stray)

    assert faults_of(world, tmp_path, "I8") == {
        "audited before the stream was made again, not published again": 1
    }
    letter = Message("dlq.orders.OrderCreated", stray.body, {"Ironcart-Reason": "why"})
    world.older["DEADLETTERS"] = [letter]
    world.audit = None
    assert faults_of(world, tmp_path, "I8") == {}, "it was set aside, and the audit says so"


def test_what_is_published_again_has_the_bytes_that_were_audited(tmp_path: Path) -> None:
    world = remade_world()
    older = world.older["ORDERS"][0]
    assert older is not None
    older.body += b" "

    assert faults_of(world, tmp_path, "I8") == {
        "published again with other bytes than were audited": 1
    }


def test_a_stream_that_begins_late_without_an_explanation_is_seen(tmp_path: Path) -> None:
    world = remade_world()
    world.audit = [entry for entry in world.trail() if entry[0] != "ORDERS" or entry[1] != 1]

    assert "the beginning of a stream is gone" in faults_of(world, tmp_path, "I10")
    assert "the chain does not add up" in faults_of(world, tmp_path, "I8")


def test_a_letter_that_was_dealt_with_is_open_no_more_and_the_deed_is_an_event(
    tmp_path: Path,
) -> None:
    world = clean_world()
    garbage = Message("dlq.inventory.unknown", b"x", {"Ironcart-Reason": "not JSON"})
    deed = json.loads(world.streams["ORDERS"][0].body) | {
        "id": "0af76519-16cd-43dd-8448-eb211c80319c",
        "type": "DeadLetterDiscarded",
        "aggregate_id": "dlq-inventory-1",
    }
    body = json.dumps(deed).encode()
    world.streams["DEADLETTERS"] += [garbage, Message("dlq.inventory.discarded", body)]
    assert "in the stream, in no service's history" in faults_of(world, tmp_path, "I8")
    world.history.append(
        Row(
            service="inventory",
            id=uuid.UUID(deed["id"]),
            aggregate=deed["aggregate_id"],
            version=1,
            type=deed["type"],
            subject="dlq.inventory.discarded",
            body=body,
            batch_no=99,
            seq=2,
        )
    )

    assert faults_of(world, tmp_path, "I8") == {}
    assert faults_of(world, tmp_path, "I9") == {"dead letters, 0 expected": 1}
    world.resolved = {1}
    findings = examine(world, tmp_path)
    assert findings["I9"].ok
    assert findings["I9"].figures["dealt with"] == 1


def test_an_order_nobody_created_and_causes_in_a_circle_are_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.emit(
        "payments",
        "PaymentVoided",
        "ORD-99",
        {},
        world.emit("inventory", "StockReleased", "ORD-99", {}, None),
    )

    assert faults_of(world, tmp_path, "I10")["about an order that nobody created"] == 2

    circle = clean_world()
    first, second = (
        next(row for row in circle.history if row.type == kind and row.aggregate == "ORD-1")
        for kind in ("StockReserved", "PaymentSucceeded")
    )
    for row, cause in ((first, second.id), (second, first.id)):
        message = next(m for s in circle.streams.values() for m in s if m.body == row.body)
        event = json.loads(row.body) | {"causation_id": str(cause)}
        row.body = message.body = json.dumps(event).encode()
    assert faults_of(circle, tmp_path, "I10") == {"caused by itself": 1}
