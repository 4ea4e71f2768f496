"""I4 replays stock event by event and sees oversold shelves, at the end and on the way."""

import json
from pathlib import Path

from verify_judge import examine, faults_of
from verify_world import World, clean_world


def _adjust(world: World, sku: str, delta: int, reason: str = "") -> None:
    data = {"sku": sku, "delta": delta, "reason": reason}
    world.emit("inventory", "StockAdjusted", sku, data, None)
    world.stock[sku][0] += delta
    world.audit = None


def test_more_reserved_than_there_is_is_oversold(tmp_path: Path) -> None:
    world = World()
    world.fill("LOAD-0001", 1)
    world.place(1)

    finding = examine(world, tmp_path)["I4"]

    assert finding.faults.counts["oversold"] == 1
    assert "LOAD-0001 by ORD-1" in finding.faults.examples["oversold"][0]


def test_a_shelf_that_was_oversold_only_for_a_while_is_seen(tmp_path: Path) -> None:
    world = World()
    world.fill("LOAD-0001", 1)
    world.place(1)
    _adjust(world, "LOAD-0001", 100)

    findings = examine(world, tmp_path)

    assert findings["I4"].faults.counts == {"oversold": 1}


def test_units_whose_adjustment_was_lost_with_a_database_were_there_before(tmp_path: Path) -> None:
    world = World()
    world.fill("LOAD-0001", 1)
    world.place(1)
    _adjust(world, "LOAD-0001", 100, "recovered")

    finding = examine(world, tmp_path)["I4"]

    assert finding.ok
    assert finding.figures["made good"] == 100


def test_an_order_may_be_called_like_a_sku(tmp_path: Path) -> None:
    world = World()
    world.fill("ORD-1", 5)
    world.fill("LOAD-0001", 5)
    world.fill("LOAD-0002", 5)
    world.place(1)

    assert examine(world, tmp_path)["I5"].ok


def test_a_release_that_reached_the_stream_late_is_not_oversold(tmp_path: Path) -> None:
    world = World()
    world.fill("LOAD-0001", 2)
    world.place(1, "declined")
    world.place(2)
    messages = world.streams["INVENTORY"]
    # ORD-1's release is recorded before ORD-2's reservation, and published after it.
    assert [json.loads(m.body)["type"] for m in messages[2:4]] == ["StockReleased", "StockReserved"]
    messages[2], messages[3] = messages[3], messages[2]
    rows = [row for row in world.history if row.service == "inventory"]
    rows[2].seq, rows[3].seq = 4, 3

    finding = examine(world, tmp_path)["I4"]

    assert finding.ok
    assert finding.figures["prefixes out of order"] == 1


def test_a_table_that_differs_from_the_replay_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.stock["LOAD-0001"][0] += 1
    world.stock["LOAD-0003"] = [1, 0]

    assert faults_of(world, tmp_path, "I4") == {
        "the table differs from the replay (on hand, reserved)": 2
    }


def test_stock_still_reserved_for_a_terminal_order_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.reservations["ORD-3"] = "reserved"

    assert faults_of(world, tmp_path, "I4") == {"rejected, but stock is still reserved": 1}


def test_a_reservation_that_ends_twice_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    lines = {"order_id": "ORD-1", "lines": [{"sku": "LOAD-0001", "quantity": 2}]}
    world.emit("inventory", "StockReleased", "ORD-1", lines, None)

    faults = faults_of(world, tmp_path, "I4")

    assert faults["a reservation ended more than once"] == 1


def test_a_commit_of_other_lines_than_were_reserved_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    committed = world.find("INVENTORY", "ORD-1", "StockCommitted")
    committed.change(lines=[{"sku": "LOAD-0001", "quantity": 1}])

    faults = faults_of(world, tmp_path, "I4")

    assert "StockCommitted has other lines than were reserved" in faults
    assert "sold differs from the confirmed lines" in faults


def test_a_reservation_of_other_lines_than_were_ordered_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    items = [{"sku": "LOAD-0002", "quantity": 1, "unit_price": 39.98}]
    world.find("INVENTORY", "ORD-4", "StockReserved").change(items=items)

    assert "reserved other lines than were ordered" in faults_of(world, tmp_path, "I4")


def test_a_confirmed_order_whose_stock_was_never_committed_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.orders["ORD-3"]["status"] = "confirmed"

    assert "sold differs from the confirmed lines" in faults_of(world, tmp_path, "I4")


def test_a_tombstone_release_without_lines_is_allowed(tmp_path: Path) -> None:
    world = clean_world()
    order_id = world.place(9, "out_of_stock")
    world.streams["INVENTORY"].pop()
    world.history = [
        row for row in world.history if (row.service, row.aggregate) != ("inventory", order_id)
    ]
    del world.versions["inventory", order_id]
    cause = json.loads(world.find("ORDERS", order_id, "OrderRejected").body)["id"]
    world.emit("inventory", "StockReleased", order_id, {"order_id": order_id, "lines": []}, cause)
    world.reservations[order_id] = "released"

    findings = examine(world, tmp_path)

    assert findings["I4"].ok
    assert findings["I5"].ok
