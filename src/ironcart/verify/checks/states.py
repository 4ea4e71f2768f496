"""I5: every aggregate's history runs through allowed edges, once, and its row is their fold."""

from collections import Counter, defaultdict

from ironcart.verify.facts import TERMINAL, Event, Facts
from ironcart.verify.findings import Faults, Finding

# (state, event) -> state; a pair that is absent is forbidden. A charge that turns up after the end
# is undone by one more OrderCancellationRequested, which leaves the order where it was.
EDGES: dict[str, dict[tuple[str, str], str]] = {
    "ORDERS": {
        ("", "OrderCreated"): "open",
        ("open", "OrderCancellationRequested"): "cancelling",
        ("open", "OrderConfirmed"): "confirmed",
        ("open", "OrderRejected"): "rejected",
        ("open", "OrderCancelled"): "cancelled",
        ("cancelling", "OrderCancelled"): "cancelled",
        ("rejected", "OrderCancellationRequested"): "rejected, charged late",
        ("cancelled", "OrderCancellationRequested"): "cancelled, charged late",
    },
    "INVENTORY": {
        ("", "StockReserved"): "reserved",
        ("", "StockRejected"): "rejected",
        ("", "StockReleased"): "released",
        ("reserved", "StockCommitted"): "committed",
        ("reserved", "StockReleased"): "released",
    },
    "PAYMENTS": {
        ("", "PaymentSucceeded"): "succeeded",
        ("", "PaymentFailed"): "failed",
        ("", "PaymentVoided"): "voided",
        ("succeeded", "RefundIssued"): "succeeded",
        ("succeeded", "PaymentRefunded"): "refunded",
        ("failed", "PaymentRefunded"): "refunded",
        ("voided", "PaymentRefunded"): "refunded",
    },
}
ADJUSTED = "StockAdjusted"
TERMINAL_EVENTS = frozenset({"OrderConfirmed", "OrderRejected", "OrderCancelled"})
ORDER_STATUSES = {
    "open": {"pending", "reserved"},
    "rejected, charged late": {"rejected"},
    "cancelled, charged late": {"cancelled"},
}
PAYMENT_STATES = {
    "succeeded": {"succeeded", "refunding", "op_refunding", "op_then_refund"},
    "failed": {"failed", "refunding"},
    "voided": {"voided", "refunding"},
}
PAYMENTS_WITHOUT_EVENT = frozenset({"charging", "closing", "voiding"})

Folds = dict[str, str]


def state_machine(facts: Facts) -> Finding:
    """I5: versions 1..n without gap or double, allowed edges, one terminal event, row = fold."""
    faults = Faults()
    folds = {stream: _fold(stream, facts.owned(stream), faults) for stream in EDGES}
    _fold_notices(facts.owned("NOTIFICATIONS"), faults)
    terminal = Counter(
        event.aggregate for event in facts.owned("ORDERS") if event.type in TERMINAL_EVENTS
    )
    for order_id, times in terminal.items():
        if times > 1:
            faults.add("several terminal events", order_id)
    _compare_orders(facts, folds["ORDERS"], terminal, faults)
    for order_id, state in facts.reservations.items():
        if state != "none":
            _compare("reservation", order_id, state, {folds["INVENTORY"].get(order_id, "")}, faults)
    for payment in facts.payments.values():
        fold = folds["PAYMENTS"].get(payment.order_id, "")
        allowed = PAYMENT_STATES.get(fold, {fold} if fold else PAYMENTS_WITHOUT_EVENT)
        _compare("payment", payment.order_id, payment.state, allowed, faults)
    statuses = Counter(order.status for order in facts.orders.values())
    return Finding(
        "I5",
        "state machine",
        "ORDERS, INVENTORY, PAYMENTS, NOTIFICATIONS and their services' tables",
        {
            "aggregates": sum(len(fold) for fold in folds.values()),
            "events": sum(len(facts.owned(stream)) for stream in (*EDGES, "NOTIFICATIONS")),
            **{status: statuses[status] for status in sorted(TERMINAL)},
            "not terminal": sum(
                count for status, count in statuses.items() if status not in TERMINAL
            ),
        },
        faults,
    )


def _fold(stream: str, events: list[Event], faults: Faults) -> Folds:
    histories: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        histories[event.aggregate].append(event)
    folds: Folds = {}
    for aggregate, own in histories.items():
        own.sort(key=lambda event: event.version)
        _check_versions(stream, aggregate, own, faults)
        state = ""
        for event in own:
            if event.type == ADJUSTED:  # Of the SKU, which an order may be called like.
                continue
            following = EDGES[stream].get((state, event.type))
            if following is None:
                edge = f"{state or 'nothing'} → {event.type}"
                faults.add(f"forbidden edge in {stream}", f"{aggregate}: {edge}")
                break
            state = following
        folds[aggregate] = state or ADJUSTED
    return folds


def _fold_notices(events: list[Event], faults: Faults) -> None:
    histories: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        histories[event.aggregate].append(event)
    for aggregate, own in histories.items():
        own.sort(key=lambda event: event.version)
        _check_versions("NOTIFICATIONS", aggregate, own, faults)
        notices = [event.notice for event in own]
        if len(set(notices)) < len(notices):
            faults.add("one notification settled twice", aggregate)


def _check_versions(stream: str, aggregate: str, own: list[Event], faults: Faults) -> None:
    versions = [event.version for event in own]
    if versions != list(range(1, len(own) + 1)):
        kind = "double version" if len(set(versions)) < len(versions) else "gap in versions"
        faults.add(f"{kind} in {stream}", f"{aggregate}: {versions}")


def _compare_orders(facts: Facts, fold: Folds, terminal: Counter[str], faults: Faults) -> None:
    for order in facts.orders.values():
        state = fold.get(order.order_id, "")
        _compare("order", order.order_id, order.status, ORDER_STATUSES.get(state, {state}), faults)
        if not terminal[order.order_id] and not facts.moving:
            faults.add("no terminal event", f"{order.order_id} {order.status}")
    for order_id in fold:
        if order_id not in facts.orders:
            faults.add("order in the stream, not in the database", order_id)


def _compare(
    what: str, aggregate: str, stored: str, allowed: set[str] | frozenset[str], faults: Faults
) -> None:
    if stored not in allowed:
        wanted = " or ".join(sorted(allowed)) or "nothing"
        faults.add(f"{what} differs from its events", f"{aggregate}: {stored}, events: {wanted}")
