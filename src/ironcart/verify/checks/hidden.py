"""I9: nothing is parked, failing, unpublished, unread or forgotten; the system came to rest."""

from collections import Counter

from ironcart.verify.facts import Facts
from ironcart.verify.findings import Faults, Finding

REASONS_SHOWN_MAX = 3


def nothing_hidden(facts: Facts, *, expected_dead_letters: int, settle_s: float) -> Finding:
    """I9: dead letters are exactly the injected poison, and nothing is left under way.

    A system that is still busy after `settle_s` is a fault: it is stuck, or load is running.
    Early orders and waiting rows are faults only where nothing moves any more.
    """
    faults = Faults()
    distinct = [letter for letter in facts.dead_letters if not letter.repeated]
    left = [letter for letter in distinct if not letter.resolved]
    letters = len(left)
    if letters != expected_dead_letters:
        reasons = Counter(
            f"{letter.subject}: {letter.reason or 'no reason given'}" for letter in left
        )
        shown = "; ".join(f"{why} x{n}" for why, n in reasons.most_common(REASONS_SHOWN_MAX))
        faults.add(f"dead letters, {expected_dead_letters} expected", shown, letters)
    unrest = "load or work goes on" if facts.moving else "stuck"
    unrest = f"not quiet after {settle_s:g} s, {unrest}"
    for reason in facts.backlog.reasons():
        faults.add(f"{unrest}: {reason}")
    for consumer in facts.backlog.consumers:
        if consumer.max_deliver > 0:
            faults.add(
                "a consumer gives up silently (max_deliver)", f"{consumer.stream}/{consumer.name}"
            )
    for service, jobs in facts.leftovers.old_jobs.items():
        faults.add("jobs open for more than 60 s", service, jobs)
    if facts.leftovers.waiting_behind and not letters:
        for service, waiting in facts.leftovers.waiting_behind.items():
            faults.add("waiting behind a dead letter that does not exist", service, waiting)
    parked = Counter(letter.subject.split(".")[1] for letter in distinct)
    for service, failing in facts.leftovers.failing.items():
        # A message whose attempts were used up lies in DEADLETTERS and keeps its failure row.
        if failing > parked[service]:
            faults.add(
                "failed, neither handled nor dead-lettered", service, failing - parked[service]
            )
    for service, waiting in facts.leftovers.waiting.items():
        without_job = waiting - facts.leftovers.jobs.get(service, 0)
        if without_job > 0 and not facts.moving:
            faults.add("rows that wait for a job that does not exist", service, without_job)
    for order_id in () if facts.moving else facts.leftovers.early_orders:
        faults.add("facts about an order that never came", order_id)
    return Finding(
        "I9",
        "nothing hidden",
        "DEADLETTERS, consumers, batches, jobs, failures",
        {
            "dead letters": letters,
            "dealt with": len(distinct) - letters,
            "waiting behind": sum(facts.leftovers.waiting_behind.values()),
            "unpublished": sum(facts.backlog.unpublished.values()),
            "pending": sum(c.pending + c.ack_pending for c in facts.backlog.consumers),
            "consumers": len(facts.backlog.consumers),
            "jobs": sum(facts.backlog.jobs.values()),
            "webhooks tried again": facts.leftovers.webhooks_tried_again,
            "failed before": sum(facts.leftovers.failing.values()),
        },
        faults,
    )
