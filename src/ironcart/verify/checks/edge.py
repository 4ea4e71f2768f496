"""I1 and I7: what the load generator was promised, held against the stream and the database."""

from ironcart.verify.facts import TERMINAL, Event, Facts
from ironcart.verify.findings import Faults, Finding


def none_lost(facts: Facts) -> Finding:
    """I1: every accepted order is in the stream and in the database, with the body that was sent.

    Classes are Jepsen's: ok, lost, unknown (no answer, yet stored) and unexpected (a key of the
    generator's that it never used). Orders placed by others are never unexpected.
    """
    faults = Faults()
    created = _created(facts)
    accepted = lost = in_flight = 0
    for attempt in facts.log.attempts.values():
        for order_id in dict.fromkeys(attempt.order_ids):
            order = facts.orders.get(order_id)
            event = created.get(order_id)
            accepted += 1
            lost += event is None or order is None
            in_flight += order is not None and order.status not in TERMINAL
            if event is None:
                faults.add("accepted, not in the stream", order_id)
            elif event.basket != attempt.basket:
                faults.add("the stream holds another body than was sent", order_id)
            if order is None:
                faults.add("accepted, not in the database", order_id)
            elif order.basket != attempt.basket:
                faults.add("the database holds another body than was sent", order_id)
    unknown = 0
    for key, attempt in facts.log_after.attempts.items():
        if not attempt.order_ids and key in facts.keys:
            unknown += 1
            if attempt.refused:
                faults.add("refused, yet stored", facts.keys[key])
    prefixes = tuple(facts.log_after.prefixes)
    for key, order_id in facts.keys.items():
        if prefixes and key.startswith(prefixes) and key not in facts.log_after.attempts:
            faults.add("unexpected: stored under a key that was never sent", order_id)
    return Finding(
        "I1",
        "none lost",
        "load log, ORDERS, orders.orders",
        {
            "keys sent": len(facts.log_after.attempts),
            "accepted": accepted,
            "ok": accepted - lost,
            "lost": lost,
            "unknown": unknown,
            "unexpected": faults.counts.get(
                "unexpected: stored under a key that was never sent", 0
            ),
            "in flight": in_flight,
            "orders of others": len(facts.orders) - len(facts.keys),
        },
        faults,
    )


def _created(facts: Facts) -> dict[str, Event]:
    """Return the first OrderCreated of each order."""
    events = facts.events("ORDERS")
    if facts.moving:
        events = events + facts.pending.get("ORDERS", [])
    return {
        event.aggregate: event
        for event in reversed(events)
        if event.type == "OrderCreated" and event.valid
    }


def idempotent_edge(facts: Facts) -> Finding:
    """I7: a key has one order and one answer for ever, and another body under it is a 422."""
    faults = Faults()
    answers = repeats = probes = 0
    keys_of: dict[str, str] = {}
    for key, attempt in facts.log.attempts.items():
        answers += len(attempt.order_ids)
        repeats += max(0, len(attempt.order_ids) - 1)
        ids = list(dict.fromkeys(attempt.order_ids))
        if len(ids) > 1:
            faults.add("several orders under one key", f"{key}: {' '.join(ids)}")
        elif len(set(attempt.answers)) > 1:
            faults.add("different answers under one key", f"{key}: {ids[0]}")
        for order_id in ids:
            if keys_of.setdefault(order_id, key) != key:
                faults.add("one order under several keys", f"{order_id}: {key} {keys_of[order_id]}")
            stored = facts.keys.get(key)
            if stored is None:
                faults.add("answered, but the key is not stored", key)
            elif stored != order_id:
                faults.add("the key is stored with another order", f"{key}: {order_id} {stored}")
        for status in attempt.other_body:
            # No answer, or a server in trouble, says nothing about the rule.
            if 200 <= status < 500:
                probes += 1
                if status != 422:
                    faults.add(f"another body under a used key answered {status}", key)
    return Finding(
        "I7",
        "idempotent edge",
        "load log, orders.idempotency_keys",
        {"keys": len(keys_of), "answers": answers, "repeated": repeats, "other bodies": probes},
        faults,
    )
