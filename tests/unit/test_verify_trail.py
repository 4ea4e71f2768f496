"""I8, I9 and I10 see a trail that was touched, a stream with holes, and whatever lies about."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from ironcart.verify.facts import Consumer, Facts
from verify_judge import examine, faults_of
from verify_world import Message, World, clean_world


def _garbage(world: World) -> None:
    world.streams["ORDERS"].append(Message("orders.created", b"not json"))
    letter = Message("dlq.inventory.unknown", b"not json", {"Ironcart-Reason": "not JSON"})
    world.streams["DEADLETTERS"].append(letter)
    world.audit = None


def test_a_changed_body_in_the_audit_trail_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.trail()[3][4] += b" "

    assert faults_of(world, tmp_path, "I8") == {
        "the chain does not add up": 1,
        "audited with other bytes": 1,
    }


def test_a_changed_message_in_the_stream_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.trail()
    world.streams["ORDERS"][2].body += b" "

    assert faults_of(world, tmp_path, "I8") == {
        "audited with other bytes": 1,
        "the history and the stream have other bytes": 1,
    }


def test_an_entry_taken_out_of_the_chain_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    del world.trail()[3]

    assert faults_of(world, tmp_path, "I8") == {
        "the chain does not add up": 1,
        "not in the audit trail": 1,
    }


def test_a_tail_cut_off_the_chain_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    stream = world.trail()[-1][0]
    world.audit = [entry for entry in world.trail() if entry[0] != stream or entry[1] < 4]

    faults = faults_of(world, tmp_path, "I8")

    assert faults == {"not in the audit trail": len(world.streams[stream]) - 3}


def test_an_entry_without_a_link_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.trail()[3][5] = None

    assert "no link in the chain" in faults_of(world, tmp_path, "I8")


def test_a_chain_made_anew_from_other_bytes_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    original = world.streams["ORDERS"][0].body
    world.streams["ORDERS"][0].body = original.replace(b"39.98", b"39.97")
    world.trail()
    world.streams["ORDERS"][0].body = original

    assert faults_of(world, tmp_path, "I8") == {"audited with other bytes": 1}


@pytest.mark.parametrize(
    ("column", "value", "fault"),
    [
        (2, "orders.cancelled", "audited under another subject"),
        (3, str(uuid.UUID(int=84)), "audited under another event id"),
        (3, "", "audited under another event id"),
        (1, 999, "in the audit trail, not in the stream"),
    ],
)
def test_an_entry_that_names_its_message_otherwise_is_seen(
    tmp_path: Path, column: int, value: object, fault: str
) -> None:
    world = clean_world()
    entry = next(e for e in world.trail() if e[0] == "ORDERS" and e[1] == 1)
    entry[column] = value

    faults = faults_of(world, tmp_path, "I8")

    # Beyond what the stream had when we read it, an entry is none of our business.
    assert fault in faults or column == 1
    assert faults


@pytest.mark.parametrize(("column", "value"), [(7, "PaymentFailed"), (8, "ORD-NOBODY"), (8, "")])
def test_an_old_entry_that_is_named_otherwise_than_in_its_body_is_seen(
    tmp_path: Path, column: int, value: str
) -> None:
    world = clean_world()
    world.trail()[3][column] = value

    assert faults_of(world, tmp_path, "I8") == {"audited under another type or aggregate": 1}


def test_a_fact_that_was_committed_and_never_published_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.streams["NOTIFICATIONS"].pop()
    world.history[-1].seq = None

    assert faults_of(world, tmp_path, "I8") == {
        "in a service's history, not in the stream": 1,
    }


def test_a_fact_that_no_service_recorded_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    forged = Message("payments.succeeded", world.find("PAYMENTS", "ORD-1", "PaymentSucceeded").body)
    forged.change(id=str(uuid.uuid4()), aggregate_id="ORD-3")
    world.streams["PAYMENTS"].append(forged)

    assert faults_of(world, tmp_path, "I8") == {"in the stream, in no service's history": 1}


def test_events_published_again_are_only_counted(tmp_path: Path) -> None:
    world = clean_world()
    for messages in world.streams.values():
        messages += [Message(message.subject, message.body) for message in list(messages)]

    findings = examine(world, tmp_path)

    assert [name for name, finding in findings.items() if not finding.ok] == []
    assert findings["I8"].figures["published again"] == len(world.history)


def test_other_bytes_under_a_known_id_are_seen(tmp_path: Path) -> None:
    world = clean_world()
    first = world.streams["ORDERS"][0]
    world.streams["ORDERS"].append(Message(first.subject, first.body + b" "))

    assert faults_of(world, tmp_path, "I8") == {"same id, other bytes": 1}


def test_garbage_that_was_dead_lettered_breaks_only_the_count_of_dead_letters(
    tmp_path: Path,
) -> None:
    world = clean_world()
    _garbage(world)

    findings = examine(world, tmp_path)

    assert [name for name, finding in findings.items() if not finding.ok] == ["I9"]
    (example,) = findings["I9"].faults.examples["dead letters, 0 expected"]
    assert example == "dlq.inventory.unknown: not JSON x1"


def test_expected_dead_letters_must_be_there_exactly(tmp_path: Path) -> None:
    world = clean_world()
    _garbage(world)

    assert examine(world, tmp_path, expected_dead_letters=1)["I9"].ok
    assert not examine(world, tmp_path, expected_dead_letters=2)["I9"].ok
    assert not examine(clean_world(), tmp_path, expected_dead_letters=1)["I9"].ok


def test_a_refused_event_may_be_in_no_history(tmp_path: Path) -> None:
    world = clean_world()
    conflict = Message("orders.created", world.streams["ORDERS"][0].body)
    conflict.change(id=str(uuid.uuid4()), customer_id="C-9")
    world.streams["ORDERS"].append(conflict)
    world.streams["DEADLETTERS"].append(Message("dlq.orders.OrderCreated", conflict.body))

    findings = examine(world, tmp_path, expected_dead_letters=1)

    assert [name for name, finding in findings.items() if not finding.ok] == []


def _open_orders(facts: Facts) -> None:
    facts.backlog.open_orders = 2


def _pending(facts: Facts) -> None:
    facts.backlog.consumers.append(Consumer("ORDERS", "inventory", 3, 1, -1))


def _gives_up(facts: Facts) -> None:
    facts.backlog.consumers.append(Consumer("ORDERS", "inventory", 0, 0, 5))


def _unpublished(facts: Facts) -> None:
    facts.backlog.unpublished["payments"] = 4


def _jobs(facts: Facts) -> None:
    facts.backlog.jobs["payments"] = 2


def _old_jobs(facts: Facts) -> None:
    facts.leftovers.old_jobs["payments"] = 1


def _failing(facts: Facts) -> None:
    facts.leftovers.failing["orders"] = 1


def _waiting(facts: Facts) -> None:
    facts.leftovers.waiting["payments"] = 1


def _early(facts: Facts) -> None:
    facts.leftovers.early_orders.append("ORD-77")


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_open_orders, "not quiet after 1 s, stuck: 2 orders are not terminal"),
        (
            _pending,
            "not quiet after 1 s, stuck: inventory has 3 pending and 1 unacknowledged on ORDERS",
        ),
        (_gives_up, "a consumer gives up silently (max_deliver)"),
        (_unpublished, "not quiet after 1 s, stuck: payments has 4 events unpublished"),
        (_jobs, "not quiet after 1 s, stuck: payments has 2 jobs open"),
        (_old_jobs, "jobs open for more than 60 s"),
        (_failing, "failed, neither handled nor dead-lettered"),
        (_waiting, "rows that wait for a job that does not exist"),
        (_early, "facts about an order that never came"),
    ],
)
def test_whatever_is_left_lying_about_is_seen(
    tmp_path: Path, spoil: Callable[[Facts], None], fault: str
) -> None:
    findings = examine(clean_world(), tmp_path, change=spoil)

    assert list(findings["I9"].faults.counts) == [fault]


def test_a_hole_in_a_stream_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.holes = {("ORDERS", 3), ("ORDERS", 4)}

    faults = faults_of(world, tmp_path, "I10")

    assert faults["messages missing in a stream"] == 2
    assert faults_of(world, tmp_path, "I8")["in a service's history, not in the stream"] == 2


def test_a_stream_that_lost_its_tail_or_its_beginning_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.holes = {("ORDERS", len(world.streams["ORDERS"]))}
    assert faults_of(world, tmp_path, "I10")["messages missing in a stream"] == 1

    def cut(facts: Facts) -> None:
        facts.streams["PAYMENTS"].first_seq = 2

    assert "the beginning of a stream is gone" in faults_of(
        clean_world(), tmp_path, "I10", change=cut
    )


def test_a_broker_that_went_back_in_time_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.history[0].seq = 1_000

    assert faults_of(world, tmp_path, "I10") == {
        "not at the stream sequence that its history says": 1,
        "the broker went back in time: a history knows a higher sequence": 1,
    }


def test_a_history_that_points_to_another_message_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.history[0].seq = 2

    assert faults_of(world, tmp_path, "I10") == {
        "not at the stream sequence that its history says": 1
    }


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"trace_id": ""}, "no trace id"),
        ({"causation_id": str(uuid.UUID(int=282))}, "caused by an event nobody knows"),
        ({"causation_id": ""}, "no cause"),
    ],
)
def test_an_event_out_of_nowhere_is_seen(
    tmp_path: Path, fields: dict[str, str], fault: str
) -> None:
    world = clean_world()
    world.find("INVENTORY", "ORD-1", "StockReserved").change(**fields)

    assert faults_of(world, tmp_path, "I10") == {fault: 1}


def test_an_event_caused_by_another_order_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    other = json.loads(world.find("ORDERS", "ORD-2", "OrderCreated").body)["id"]
    world.find("INVENTORY", "ORD-1", "StockReserved").change(causation_id=other)

    assert faults_of(world, tmp_path, "I10") == {"caused by an event about something else": 1}
