"""I11: once whatever was wrong is over, everything finishes, and soon."""

from ironcart.verify.facts import Facts
from ironcart.verify.findings import Faults, Finding

UNPUBLISHED_MAX_S = 60.0
BREAKER = "ironcart_breaker_state"


def liveness(facts: Facts, *, terminal_within_s: float | None) -> Finding:
    """I11: nothing is overdue or old, no breaker holds up work; 99 in 100 orders ended in time.

    `terminal_within_s` is what is allowed from accepted to ended; None judges no duration. A
    breaker stays open until somebody calls: it is a fault where calls are waiting.
    """
    faults = Faults()
    left = facts.leftovers
    for service, jobs in left.overdue_jobs.items():
        faults.add("jobs overdue that nobody works on", service, jobs)
    for service, age_s in left.unpublished_age_s.items():
        if age_s > UNPUBLISHED_MAX_S:
            faults.add("committed long ago, not published", f"{service} {age_s:.0f} s")
    breakers = _open_breakers(facts.metrics)
    for service, name in breakers:
        if left.jobs.get(service):
            faults.add("a breaker is open while calls wait", f"{service} {name}")
    figures: dict[str, int | str] = {
        "oldest unpublished s": round(max(left.unpublished_age_s.values(), default=0)),
        "jobs overdue": sum(left.overdue_jobs.values()),
        "breakers open": len(breakers),
        "services asked": len(facts.metrics),
    }
    if facts.ended_within_s:
        half, most, slowest = facts.ended_within_s
        figures |= {"ended p50": f"{half:.2f} s", "p99": f"{most:.2f} s", "max": f"{slowest:.2f} s"}
        if terminal_within_s is not None and most > terminal_within_s:
            faults.add(f"99 in 100 orders ended within {most:.1f} s, not {terminal_within_s:g} s")
    return Finding(
        "I11",
        "liveness",
        "jobs, batches, orders.events, /metrics",
        figures,
        faults,
    )


def _open_breakers(metrics: dict[str, dict[str, float]]) -> list[tuple[str, str]]:
    return [
        (service, sample.partition("{")[2].rstrip("}"))
        for service, samples in metrics.items()
        for sample, value in samples.items()
        if sample.startswith(BREAKER) and 'state="open"' in sample and value
    ]
