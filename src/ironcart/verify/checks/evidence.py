"""I12: what the defences had to do, so that a green report can be told from an idle one."""

from ironcart.verify.facts import Facts
from ironcart.verify.findings import Faults, Finding

OUTCOMES = "ironcart_outcomes_total"
PUBLISHED = "ironcart_events_published_total"
# Figure -> the counter's name, and a label its samples have.
COUNTED = {
    "handled": (OUTCOMES, 'outcome="done"'),
    "duplicates absorbed": (OUTCOMES, 'outcome="duplicate"'),
    "tried again": (OUTCOMES, 'outcome="retry"'),
    "set aside": (OUTCOMES, 'outcome="park"'),
    "published": (PUBLISHED, ""),
}


def evidence(facts: Facts) -> Finding:
    """I12: counts of what was absorbed, tried again and set aside; they judge nothing.

    Since each service's last start: a process that is killed takes its counters with it.
    """
    figures: dict[str, int | str] = {"services asked": len(facts.metrics)}
    for figure, (name, label) in COUNTED.items():
        figures[figure] = round(
            sum(
                value
                for samples in facts.metrics.values()
                for sample, value in samples.items()
                if sample.partition("{")[0] == name and label in sample
            )
        )
    figures["redelivered"] = sum(consumer.redelivered for consumer in facts.backlog.consumers)
    return Finding("I12", "evidence", "/metrics, consumers", figures, Faults())
