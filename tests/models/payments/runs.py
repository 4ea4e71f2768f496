"""The protocol as it is, within small budgets for every day and large ones for a long night."""

from collections.abc import Iterator

from models.payments.protocol import Protocol
from models.payments.world import Budget

NONE = Budget(crashes=0, timeouts=0, prunes=0, orphans=0, declines=0)


def small() -> Iterator[Protocol]:
    """Seconds each: what `make test` can afford."""
    once = Budget(crashes=1, timeouts=1, prunes=1, orphans=0, declines=1)
    day = NONE._replace(crashes=1, timeouts=1, days=1)
    restore = NONE._replace(timeouts=1, declines=1, restores=1)
    yield Protocol("cancelled at any moment", once)
    yield Protocol("never cancelled", once._replace(orphans=1), cancels=False)
    yield Protocol("a part refunded, cancelled", day, refunds=True)
    yield Protocol("webhooks, cancelled", once._replace(prunes=0), webhooks=True)
    yield Protocol("restored, cancelled", restore)
    yield Protocol("restored, a part refunded", NONE._replace(restores=1), refunds=True)


def full() -> Iterator[Protocol]:
    """Minutes each."""
    twice = Budget(crashes=1, timeouts=2, prunes=1, orphans=1, declines=1)
    day = NONE._replace(crashes=1, timeouts=2, days=1)
    restore = NONE._replace(timeouts=1, prunes=1, declines=1, restores=1)
    yield Protocol("cancelled at any moment", twice)
    yield Protocol("never cancelled", twice._replace(crashes=2), cancels=False)
    yield Protocol("a part refunded, cancelled", day, refunds=True)
    yield Protocol("a part refunded for two days", day._replace(days=2), refunds=True)
    yield Protocol("webhooks, a part refunded, cancelled", day, refunds=True, webhooks=True)
    yield Protocol("restored, cancelled", restore)
    yield Protocol("restored, crashes, cancelled", restore._replace(crashes=1, prunes=0))
    yield Protocol("restored, orphans closed", restore._replace(prunes=0, orphans=1))
    yield Protocol("restored, never cancelled", restore._replace(crashes=1), cancels=False)
    yield Protocol("restored, webhooks", restore._replace(prunes=0), webhooks=True)
    yield Protocol(
        "restored, a part refunded, cancelled",
        NONE._replace(crashes=1, timeouts=1, restores=1),
        refunds=True,
    )
    yield Protocol("restored twice", NONE._replace(declines=1, restores=2))
