"""I5 and I6 see forbidden edges, gaps, doubles, rows that lie, and customers who were not told."""

from pathlib import Path

from verify_judge import examine, faults_of
from verify_world import clean_world


def test_a_gap_in_the_versions_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    row = next(
        row for row in world.history if row.aggregate == "ORD-1" and row.type == "OrderConfirmed"
    )
    row.version = 3
    world.find("ORDERS", "ORD-1", "OrderConfirmed").change(version=3)

    assert faults_of(world, tmp_path, "I5") == {"gap in versions in ORDERS": 1}


def test_a_double_version_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.emit("payments", "RefundIssued", "ORD-1", {"amount": 1, "currency": "EUR"}, None)
    world.history[-1].version = 1
    world.streams["PAYMENTS"][-1].change(version=1)

    assert "double version in PAYMENTS" in faults_of(world, tmp_path, "I5")


def test_an_order_that_is_confirmed_while_cancelling_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    ended = world.find("ORDERS", "ORD-4", "OrderCancelled")
    ended.change(type="OrderConfirmed")

    faults = faults_of(world, tmp_path, "I5")

    assert faults["forbidden edge in ORDERS"] == 1


def test_two_terminal_events_are_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.emit("orders", "OrderCancelled", "ORD-1", {"order_id": "ORD-1"}, None)

    faults = faults_of(world, tmp_path, "I5")

    assert faults["several terminal events"] == 1
    assert faults["forbidden edge in ORDERS"] == 1


def test_a_late_charge_may_ask_for_its_refund_after_the_end(tmp_path: Path) -> None:
    world = clean_world()
    world.emit("orders", "OrderCancellationRequested", "ORD-3", {"order_id": "ORD-3"}, None)

    assert examine(world, tmp_path)["I5"].ok


def test_an_order_that_never_ends_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.streams["ORDERS"] = world.streams["ORDERS"][:-1]
    world.history = [
        row
        for row in world.history
        if not (row.aggregate == "ORD-6" and row.type == "OrderConfirmed")
    ]
    world.orders["ORD-6"]["status"] = "pending"

    assert faults_of(world, tmp_path, "I5") == {"no terminal event": 1}


def test_an_order_row_that_differs_from_its_events_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.orders["ORD-3"]["status"] = "confirmed"

    assert faults_of(world, tmp_path, "I5") == {"order differs from its events": 1}


def test_a_reservation_row_that_differs_from_its_events_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.reservations["ORD-1"] = "released"

    assert faults_of(world, tmp_path, "I5") == {"reservation differs from its events": 1}


def test_a_payment_row_that_differs_from_its_events_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.payments["ORD-1"]["state"] = "charging"

    assert faults_of(world, tmp_path, "I5") == {"payment differs from its events": 1}


def test_an_order_of_the_stream_without_a_row_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    del world.orders["ORD-2"]

    assert "order in the stream, not in the database" in faults_of(world, tmp_path, "I5")


def test_a_stock_event_after_a_rejection_is_a_forbidden_edge(tmp_path: Path) -> None:
    world = clean_world()
    world.emit("inventory", "StockCommitted", "ORD-2", {"order_id": "ORD-2", "lines": []}, None)

    assert "forbidden edge in INVENTORY" in faults_of(world, tmp_path, "I5")


def test_a_payment_that_fails_after_it_succeeded_is_a_forbidden_edge(tmp_path: Path) -> None:
    world = clean_world()
    world.emit("payments", "PaymentFailed", "ORD-1", {"order_id": "ORD-1"}, None)

    assert "forbidden edge in PAYMENTS" in faults_of(world, tmp_path, "I5")


def test_a_notification_that_is_settled_twice_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    data = {"order_id": "ORD-1", "channel": "mail", "template": "confirmed"}
    world.emit("notifications", "NotificationSent", "ORD-1", data, None)

    assert faults_of(world, tmp_path, "I5") == {"one notification settled twice": 1}


def test_an_order_from_elsewhere_without_a_version_is_version_one(tmp_path: Path) -> None:
    world = clean_world()
    created = world.find("ORDERS", "ORD-1", "OrderCreated")
    created.body = created.body.replace(b', "version": 1', b"")
    row = next(row for row in world.history if row.type == "OrderCreated")
    row.body = created.body
    world.audit = None

    findings = examine(world, tmp_path)

    assert findings["I5"].ok
    assert findings["I8"].ok


def test_a_customer_who_was_not_told_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.mail = [mail for mail in world.mail if mail["order_id"] != "ORD-2"]

    assert faults_of(world, tmp_path, "I6") == {
        "no mail": 1,
        "sent by our ledger, not in the mailbox": 1,
    }


def test_a_customer_without_an_address_need_not_be_told(tmp_path: Path) -> None:
    world = clean_world()
    world.mail = [mail for mail in world.mail if mail["order_id"] != "ORD-2"]
    world.notifications = [row for row in world.notifications if row["order_id"] != "ORD-2"]
    world.orders["ORD-2"]["contact"] = None

    assert examine(world, tmp_path)["I6"].ok


def test_two_different_messages_about_one_order_are_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.mail.append(world.mail[0] | {"message_id": "<another@ironcart>"})

    assert faults_of(world, tmp_path, "I6") == {"several messages": 1}


def test_two_copies_of_one_message_are_only_counted(tmp_path: Path) -> None:
    world = clean_world()
    world.mail.append(world.mail[0])

    finding = examine(world, tmp_path)["I6"]

    assert finding.ok
    assert finding.figures["extra copies"] == 1


def test_a_mail_that_was_refused_for_good_is_only_counted(tmp_path: Path) -> None:
    world = clean_world()
    world.mail = [mail for mail in world.mail if mail["order_id"] != "ORD-2"]
    next(r for r in world.notifications if r["order_id"] == "ORD-2")["state"] = "failed"
    world.find("NOTIFICATIONS", "ORD-2", "NotificationSent").change(type="NotificationFailed")

    finding = examine(world, tmp_path)["I6"]

    assert finding.ok
    assert finding.figures["refused for good"] == 1
