"""I2 and I3 see every cent that is taken twice, kept, or unexplained."""

from pathlib import Path

from verify_judge import examine, faults_of
from verify_world import World, clean_world


def _charge(world: World, order_id: str) -> dict[str, object]:
    return next(charge for charge in world.charges if charge["order_id"] == order_id)


def test_two_captures_for_one_order_are_a_double_charge(tmp_path: Path) -> None:
    world = clean_world()
    world.charges.append(_charge(world, "ORD-1") | {"id": "pi_other"})

    findings = examine(world, tmp_path)

    assert findings["I2"].faults.counts == {"charged more than once": 1}
    assert "confirmed, captured another amount" in findings["I3"].faults.counts
    assert "captured by another intent than payments stored" in findings["I3"].faults.counts


def test_a_second_intent_that_moved_no_money_is_harmless(tmp_path: Path) -> None:
    world = clean_world()
    world.charges.append(_charge(world, "ORD-1") | {"id": "pi_orphan", "captured": 0})

    findings = examine(world, tmp_path)

    assert findings["I2"].ok
    assert findings["I3"].ok


def test_a_capture_that_is_a_cent_off_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    _charge(world, "ORD-1")["captured"] = 3997

    assert "confirmed, captured another amount" in faults_of(world, tmp_path, "I3")


def test_a_confirmed_order_that_was_never_charged_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.charges.remove(_charge(world, "ORD-1"))

    faults = faults_of(world, tmp_path, "I3")

    assert "confirmed, captured another amount" in faults
    assert "payments stored an intent the gateway does not know" in faults
    assert "EUR: net 3998, orders explain 7996" in faults


def test_money_kept_for_a_cancelled_order_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    _charge(world, "ORD-5")["refunded"] = 0

    faults = faults_of(world, tmp_path, "I3")

    assert "cancelled, but money was kept" in faults
    assert "refunded by our ledger, not so at the gateway" in faults


def test_money_kept_for_a_rejected_order_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    _charge(world, "ORD-3")["captured"] = 3998

    faults = faults_of(world, tmp_path, "I3")

    assert "rejected, but money was kept" in faults
    assert "not paid by our ledger, captured at the gateway" in faults


def test_a_refund_larger_than_the_capture_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    _charge(world, "ORD-5")["refunded"] = 4000

    assert "refunded more than was captured" in faults_of(world, tmp_path, "I3")


def test_a_refund_of_a_confirmed_order_needs_refund_issued(tmp_path: Path) -> None:
    world = clean_world()
    _charge(world, "ORD-1")["refunded"] = 1000
    world.payments["ORD-1"]["refunded_minor"] = 1000
    assert "confirmed, refunded otherwise than RefundIssued says" in faults_of(
        world, tmp_path, "I3"
    )

    money = {"order_id": "ORD-1", "amount": 10.0, "currency": "EUR", "reference": "re"}
    world.emit("payments", "RefundIssued", "ORD-1", money, None)
    world.audit = None

    findings = examine(world, tmp_path)

    assert findings["I3"].ok
    assert findings["I5"].ok
    assert findings["I3"].figures["EUR net"] == 2 * 3998 - 1000


def test_partial_refunds_add_up_and_may_not_exceed_what_was_paid(tmp_path: Path) -> None:
    world = clean_world()
    for amount in (10.0, 2.5):
        money = {"order_id": "ORD-1", "amount": amount, "currency": "EUR", "reference": "re"}
        world.emit("payments", "RefundIssued", "ORD-1", money, None)
    world.payments["ORD-1"]["refunded_minor"] = _charge(world, "ORD-1")["refunded"] = 1250
    assert examine(world, tmp_path)["I3"].ok

    _charge(world, "ORD-1")["refunded"] = 1000
    assert faults_of(world, tmp_path, "I3").keys() == {
        "confirmed, refunded otherwise than RefundIssued says",
        "refunds differ between our ledger and the gateway",
        "EUR: net 6996, orders explain 6746",
    }

    money = {"order_id": "ORD-1", "amount": 30.0, "currency": "EUR", "reference": "re"}
    world.emit("payments", "RefundIssued", "ORD-1", money, None)
    assert "RefundIssued for more than was paid" in faults_of(world, tmp_path, "I3")


def test_a_charge_for_an_order_nobody_knows_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.charges.append(_charge(world, "ORD-1") | {"id": "pi_x", "order_id": "ORD-99"})

    faults = faults_of(world, tmp_path, "I3")

    assert "charged for an order nobody knows" in faults
    assert "captured, unknown to payments" in faults


def test_a_charge_in_another_currency_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    _charge(world, "ORD-1")["currency"] = "usd"

    assert "charged in another currency than EUR" in faults_of(world, tmp_path, "I3")


def test_refunds_that_differ_between_the_ledgers_are_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.payments["ORD-1"]["refunded_minor"] = 5

    assert faults_of(world, tmp_path, "I3") == {
        "refunds differ between our ledger and the gateway": 1
    }


def test_a_payment_that_succeeded_only_in_our_ledger_is_seen(tmp_path: Path) -> None:
    world = clean_world()
    world.payments["ORD-3"]["state"] = "succeeded"

    assert "paid by our ledger, not so at the gateway" in faults_of(world, tmp_path, "I3")
