"""I1 and I7 see what is lost, changed, unexpected or answered twice."""

from pathlib import Path
from typing import Any

from ironcart.verify.facts import Facts
from verify_judge import examine, faults_of
from verify_world import PREFIX, clean_world


def test_an_accepted_order_that_is_not_in_the_database_is_lost(tmp_path: Path) -> None:
    world = clean_world()
    del world.orders["ORD-3"]

    finding = examine(world, tmp_path)["I1"]

    assert finding.faults.counts == {"accepted, not in the database": 1}
    assert finding.faults.examples["accepted, not in the database"] == ["ORD-3"]
    assert finding.figures["lost"] == 1


def test_an_accepted_order_that_is_not_in_the_stream_is_lost(tmp_path: Path) -> None:
    world = clean_world()
    created = world.find("ORDERS", "ORD-3", "OrderCreated")
    created.body = b"{}"

    assert "accepted, not in the stream" in faults_of(world, tmp_path, "I1")


def test_an_order_of_which_only_early_facts_are_known_is_lost(tmp_path: Path) -> None:
    world = clean_world()
    del world.orders["ORD-3"]
    world.early.append("ORD-3")

    assert "accepted, not in the database" in faults_of(world, tmp_path, "I1")


def test_another_amount_in_the_database_is_another_body(tmp_path: Path) -> None:
    world = clean_world()
    world.orders["ORD-1"]["amount_minor"] += 1

    assert faults_of(world, tmp_path, "I1") == {"the database holds another body than was sent": 1}


def test_another_customer_in_the_stream_is_another_body(tmp_path: Path) -> None:
    world = clean_world()
    world.find("ORDERS", "ORD-1", "OrderCreated").change(customer_id="C-2")

    assert faults_of(world, tmp_path, "I1") == {"the stream holds another body than was sent": 1}


def test_another_line_in_the_database_is_another_body(tmp_path: Path) -> None:
    world = clean_world()
    world.orders["ORD-1"]["items"] = [{"sku": "LOAD-0002", "quantity": 2, "unit_price": 19.99}]

    assert "the database holds another body than was sent" in faults_of(world, tmp_path, "I1")


def test_a_key_of_the_generator_that_it_never_sent_is_unexpected(tmp_path: Path) -> None:
    world = clean_world()
    world.keys[f"{PREFIX}99"] = "ORD-99"

    finding = examine(world, tmp_path)["I1"]

    assert finding.figures["unexpected"] == 1
    assert not finding.ok


def test_orders_and_keys_of_others_are_never_unexpected(tmp_path: Path) -> None:
    world = clean_world()
    world.log = [line for line in world.log if line.get("key") != f"{PREFIX}6"]
    del world.keys[f"{PREFIX}6"]
    world.keys["somebody-elses"] = "ORD-6"

    assert faults_of(world, tmp_path, "I1") == {}


def test_a_request_without_an_answer_that_was_stored_is_only_unknown(tmp_path: Path) -> None:
    world = clean_world()
    world.log = [
        line for line in world.log if not (line["kind"] == "answer" and line["key"] == f"{PREFIX}2")
    ]

    finding = examine(world, tmp_path)["I1"]

    assert finding.ok
    assert finding.figures["unknown"] == 1
    assert finding.figures["accepted"] == 5


def test_a_request_that_was_refused_and_yet_stored_is_a_fault(tmp_path: Path) -> None:
    world = clean_world()
    for line in world.log:
        if line["kind"] == "answer" and line["key"] == f"{PREFIX}2":
            line["status"] = 400

    assert faults_of(world, tmp_path, "I1") == {"refused, yet stored": 1}


def _answer(key: str, **fields: Any) -> dict[str, Any]:
    usual = {"status": 202, "order_id": "ORD-1", "answer_sha256": f"{PREFIX}1"}
    return {"kind": "answer", "key": key, "attempt": 2, **usual, **fields}


def test_two_orders_under_one_key_are_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.log.append(_answer(f"{PREFIX}1", order_id="ORD-2"))

    assert "several orders under one key" in faults_of(world, tmp_path, "I7")


def test_two_different_answers_under_one_key_are_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.log.append(_answer(f"{PREFIX}1", answer_sha256="another"))

    assert faults_of(world, tmp_path, "I7") == {"different answers under one key": 1}


def test_one_order_under_two_keys_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    for line in world.log:
        if line["kind"] == "answer" and line["key"] == f"{PREFIX}2":
            line["order_id"] = "ORD-1"

    assert "one order under several keys" in faults_of(world, tmp_path, "I7")


def test_an_answered_key_that_is_not_stored_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    del world.keys[f"{PREFIX}4"]

    assert faults_of(world, tmp_path, "I7") == {"answered, but the key is not stored": 1}


def test_a_key_stored_with_another_order_than_answered_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.keys[f"{PREFIX}4"] = "ORD-5"

    assert "the key is stored with another order" in faults_of(world, tmp_path, "I7")


def test_another_body_under_a_used_key_must_be_refused_with_422(tmp_path: Path) -> None:
    world = clean_world()
    world.log.append(_answer(f"{PREFIX}1", other_body=True, status=422))
    world.log.append(_answer(f"{PREFIX}1", other_body=True, status=503))
    finding = examine(world, tmp_path)["I7"]
    assert finding.ok
    assert finding.figures["other bodies"] == 1

    world.log.append(_answer(f"{PREFIX}1", other_body=True, status=202))

    assert faults_of(world, tmp_path, "I7") == {"another body under a used key answered 202": 1}


def test_orders_accepted_while_we_were_reading_are_not_unexpected(tmp_path: Path) -> None:
    world = clean_world()
    world.log = [line for line in world.log if line.get("key") != f"{PREFIX}6"]

    def grow(facts: Facts) -> None:
        other = clean_world()
        other.write_log(tmp_path)
        from ironcart.verify.loadlog import read_logs

        facts.log_after = read_logs(tmp_path)

    assert examine(world, tmp_path, change=grow)["I1"].ok
