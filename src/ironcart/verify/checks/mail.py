"""I6: whoever left a mail address is told the end of the order: one message, at least one copy."""

from collections import Counter

from ironcart.verify.facts import TERMINAL, Facts
from ironcart.verify.findings import Faults, Finding


def mail(facts: Facts) -> Finding:
    """I6: each terminal order with a contact has exactly one message id in the mailbox.

    Copies of one message are counted, not faulted: a crash between the mail server's 250 and our
    commit may repeat it. A mail refused for good is told as NotificationFailed and counted.
    """
    faults = Faults()
    given_up = {
        event.aggregate
        for event in facts.owned("NOTIFICATIONS")
        if event.type == "NotificationFailed" and event.notice.startswith("mail/")
    }
    due = failed = copies = 0
    for order in facts.orders.values():
        ids = Counter(facts.mail.get(order.order_id, ()))
        copies += ids.total() - len(ids)
        if len(ids) > 1:
            faults.add("several messages", f"{order.order_id} x{len(ids)}")
        if order.status in TERMINAL and order.contact:
            due += 1
            if not ids:
                if order.order_id in given_up:
                    failed += 1
                elif not facts.moving:
                    faults.add("no mail", order.order_id)
    for row in facts.notifications:
        if row.state == "sent" and row.message_id not in facts.mail.get(row.order_id, ()):
            faults.add("sent by our ledger, not in the mailbox", row.order_id)
    messages = sum(len(ids) for ids in facts.mail.values())
    return Finding(
        "I6",
        "mail",
        "mailbox, notifications.notifications, orders.orders",
        {
            "orders with contact": due,
            "messages": messages,
            "extra copies": copies,
            "refused for good": failed,
        },
        faults,
    )
