"""While work goes on, what is only late is no fault, and what is wrong still is."""

from pathlib import Path

from verify_judge import examine
from verify_world import Message, World, clean_world


def _broken(world: World, folder: Path, *, moving: bool) -> set[str]:
    findings = examine(world, folder, moving=moving)
    return {name for name, finding in findings.items() if not finding.ok}


def _without(world: World, service: str, order_id: str, kind: str) -> Message:
    """Take back an event as though its service had not come to it yet."""
    stream = service.upper()
    message = world.find(stream, order_id, kind)
    assert world.streams[stream][-1] is message, "only the last event can be still to come"
    world.streams[stream].pop()
    world.history = [row for row in world.history if row.body != message.body]
    return message


def test_an_order_on_its_way_is_late_while_work_goes_on_and_lost_when_it_does_not(
    tmp_path: Path,
) -> None:
    world = clean_world()
    _without(world, "notifications", "ORD-6", "NotificationSent")
    world.mail = [mail for mail in world.mail if mail["order_id"] != "ORD-6"]
    world.notifications.pop()
    _without(world, "inventory", "ORD-6", "StockCommitted")
    world.reservations["ORD-6"] = "reserved"
    world.stock["LOAD-0001"] = [world.stock["LOAD-0001"][0] + 2, 2]

    assert _broken(world, tmp_path, moving=True) == set()
    assert _broken(world, tmp_path, moving=False) == {"I4", "I6"}


def test_an_event_that_is_committed_and_not_published_counts_for_its_service(
    tmp_path: Path,
) -> None:
    world = clean_world()
    committed = world.find("INVENTORY", "ORD-6", "StockCommitted")
    world.streams["INVENTORY"].remove(committed)
    next(row for row in world.history if row.body == committed.body).seq = None

    assert _broken(world, tmp_path, moving=True) == set()
    assert _broken(world, tmp_path, moving=False) == {"I8"}


def test_an_accepted_order_may_be_on_its_way_to_the_stream(tmp_path: Path) -> None:
    world = World()
    world.fill("LOAD-0001", 9)
    order_id = world.place(1)
    world.history = [row for row in world.history if row.type in {"StockAdjusted", "OrderCreated"}]
    world.history[-1].seq = None
    for stream in ("ORDERS", "PAYMENTS", "NOTIFICATIONS"):
        world.streams[stream].clear()
    del world.streams["INVENTORY"][1:]
    world.orders[order_id]["status"] = "pending"
    for table in (world.reservations, world.payments):
        table.clear()
    for rows in (world.charges, world.mail, world.notifications):
        rows.clear()
    world.stock["LOAD-0001"] = [9, 0]

    assert _broken(world, tmp_path, moving=True) == set()
    assert _broken(world, tmp_path, moving=False) == {"I1", "I5", "I8"}


def test_what_happened_after_the_snapshot_is_not_judged(tmp_path: Path) -> None:
    world = clean_world()
    world.trail()
    before, rows = len(world.log), len(world.history)
    world.place(7)
    del world.log[before:], world.history[rows:]
    for table in (world.orders, world.reservations, world.payments):
        del table["ORD-7"]
    del world.keys["load-test-7"]
    world.notifications.pop()
    world.stock["LOAD-0001"][0] += 2

    assert _broken(world, tmp_path, moving=True) == set()
    assert _broken(world, tmp_path, moving=False) == {"I3", "I8"}


def test_a_trail_that_waits_at_a_gap_is_read_up_to_the_gap(tmp_path: Path) -> None:
    world = clean_world()
    trail = world.trail()
    gap = next(index for index, entry in enumerate(trail) if entry[:2] == ["ORDERS", 5])
    for entry in trail[gap + 1 :]:
        if entry[0] == "ORDERS":
            entry[5] = None
    del trail[gap]

    assert _broken(world, tmp_path, moving=True) == set()
    assert _broken(world, tmp_path, moving=False) == {"I8"}


def test_what_is_wrong_is_wrong_while_work_goes_on(tmp_path: Path) -> None:
    world = clean_world()
    world.charges.append(world.charges[0] | {"id": "pi_again"})
    world.stock["LOAD-0002"][0] -= 1
    world.orders["ORD-2"]["status"] = "confirmed"
    world.mail.append(world.mail[0] | {"message_id": "<another@ironcart>"})
    world.keys["load-test-4"] = "ORD-5"
    world.trail()[3][4] += b" "
    world.find("PAYMENTS", "ORD-1", "PaymentSucceeded").change(causation_id="nobody")
    del world.orders["ORD-3"]

    expected = {"I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I10"}
    assert _broken(world, tmp_path, moving=True) == expected


def test_stock_sold_for_an_order_that_is_not_confirmed_is_wrong_at_any_time(
    tmp_path: Path,
) -> None:
    world = clean_world()
    world.orders["ORD-6"]["status"] = "reserved"

    assert "I4" in _broken(world, tmp_path, moving=True)
