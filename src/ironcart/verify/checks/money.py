"""I2 and I3: one capture an order at most, and every cent at the gateway explained by an order."""

from collections import Counter, defaultdict

from ironcart.verify.facts import TERMINAL, Charge, Facts, Order, Payment
from ironcart.verify.findings import Faults, Finding

# Money is on its way back: the gateway may have settled it after the snapshot.
REFUNDING = frozenset({"refunding", "op_refunding", "op_then_refund"})
# The gateway is asked after the snapshot, and may by then have settled what these wait for.
OPEN = frozenset({"charging", "closing", "voiding"})
NO_MONEY_TAKEN = frozenset({"failed", "voided"})


def charged_once(facts: Facts) -> Finding:
    """I2: the gateway captured money at most once for an order, over all its intents and keys."""
    faults = Faults()
    captures = Counter(charge.order_id for charge in facts.charges if charge.captured)
    for order_id, times in captures.items():
        if times > 1:
            faults.add("charged more than once", f"{order_id} x{times}")
    return Finding(
        "I2",
        "charged once",
        "gateway ledger",
        {
            "intents": len(facts.charges),
            "captures": captures.total(),
            "orders charged": len(captures),
        },
        faults,
    )


def money(facts: Facts) -> Finding:
    """I3: per order and per currency, captured - refunded is what the confirmed orders cost.

    Operators' refunds of confirmed orders (each a RefundIssued with its amount, partial ones add
    up) are taken into account. The gateway's ledger and payments.payments agree row for row, both
    ways.
    """
    faults = Faults()
    charges: defaultdict[str, list[Charge]] = defaultdict(list)
    for charge in facts.charges:
        charges[charge.order_id].append(charge)
    issued: Counter[str] = Counter()
    for event in facts.owned("PAYMENTS"):
        if event.type == "RefundIssued" and event.money:
            issued[event.aggregate] += event.money[0]
    net: Counter[str] = Counter()
    due: Counter[str] = Counter()
    for order_id, own in charges.items():
        if facts.moving and order_id not in facts.orders:
            continue
        for charge in own:
            net[charge.currency] += charge.captured - charge.refunded
        if order_id not in facts.orders and any(charge.captured for charge in own):
            faults.add("charged for an order nobody knows", order_id)
    for order in facts.orders.values():
        own, told = charges[order.order_id], issued[order.order_id]
        due[order.money[1]] += _judge_order(order, own, told, faults, moving=facts.moving)
    for currency in sorted(net.keys() | due.keys()):
        if net[currency] != due[currency]:
            faults.add(f"{currency}: net {net[currency]}, orders explain {due[currency]}")
    _compare_ledgers(facts, faults)
    figures: dict[str, int | str] = {"payments": len(facts.payments)}
    for currency in sorted(net.keys() | due.keys()):
        figures[f"{currency} net"] = net[currency]
        figures[f"{currency} due"] = due[currency]
    return Finding(
        "I3",
        "money",
        "gateway ledger, payments.payments, orders.orders; minor units",
        figures,
        faults,
    )


def _judge_order(
    order: Order, own: list[Charge], issued: int, faults: Faults, *, moving: bool
) -> int:
    """Add this order's faults; return what the gateway should hold for it.

    `issued` is what operators gave back by our events, in minor units.
    """
    amount, currency = order.money
    captured = sum(charge.captured for charge in own)
    refunded = sum(charge.refunded for charge in own)
    shown = f"{order.order_id} amount {amount} captured {captured} refunded {refunded}"
    if any(charge.captured and charge.currency != currency for charge in own):
        faults.add(f"charged in another currency than {currency}", shown)
    if refunded > captured:
        faults.add("refunded more than was captured", shown)
    if order.status == "confirmed":
        if captured != amount:
            faults.add("confirmed, captured another amount", shown)
        if issued > amount:
            faults.add("RefundIssued for more than was paid", f"{shown} issued {issued}")
        if moving and refunded > issued:
            return amount - refunded
        if refunded != issued:
            faults.add("confirmed, refunded otherwise than RefundIssued says", shown)
        return amount - issued
    if order.status in TERMINAL:
        if captured != refunded:
            faults.add(f"{order.status}, but money was kept", shown)
        return 0
    if captured not in {0, amount}:
        faults.add("in flight, captured another amount", shown)
    return captured - refunded


def _compare_ledgers(facts: Facts, faults: Faults) -> None:
    by_id = {charge.id: charge for charge in facts.charges}
    for charge in facts.charges:
        payment = facts.payments.get(charge.order_id)
        if not charge.captured or (facts.moving and (payment is None or payment.state in OPEN)):
            continue
        if payment is None:
            faults.add("captured, unknown to payments", f"{charge.order_id} {charge.id}")
        elif payment.intent_id != charge.id:
            faults.add("captured by another intent than payments stored", charge.order_id)
    for payment in facts.payments.values():
        if not facts.moving or payment.state not in REFUNDING:
            _judge_payment(payment, by_id.get(payment.intent_id), faults, moving=facts.moving)


def _judge_payment(
    payment: Payment, charge: Charge | None, faults: Faults, *, moving: bool
) -> None:
    captured = charge.captured if charge else 0
    refunded = charge.refunded if charge else 0
    amount, currency = payment.money
    shown = f"{payment.order_id} {payment.state} captured {captured} refunded {refunded}"
    if payment.intent_id and charge is None:
        faults.add("payments stored an intent the gateway does not know", shown)
    elif payment.state in {"succeeded", "refunded"} and (
        charge is None or captured != amount or charge.currency != currency
    ):
        faults.add("paid by our ledger, not so at the gateway", shown)
    elif (
        payment.state == "succeeded"
        and refunded != payment.refunded
        and not (moving and refunded > payment.refunded)
    ):
        faults.add("refunds differ between our ledger and the gateway", shown)
    elif payment.state == "refunded" and refunded != captured:
        faults.add("refunded by our ledger, not so at the gateway", shown)
    elif payment.state in NO_MONEY_TAKEN and captured:
        faults.add("not paid by our ledger, captured at the gateway", shown)
