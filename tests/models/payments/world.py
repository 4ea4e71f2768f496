"""One order's payment, its job, two replicas and the gateway: what there is at one moment."""

from collections.abc import Callable
from typing import Any, NamedTuple

SENT, COMING = range(2)  # A request is under way, or what came of it is.


class Worker(NamedTuple):
    """A replica with a job in hand; only one that is `live` still has the lease."""

    call: int
    phase: int
    live: bool
    backed: bool = False  # The backup names its lease.


class Budget(NamedTuple):
    """How often each fault may still strike."""

    crashes: int = 1
    timeouts: int = 2  # ... or requests lost, or leases that run out under a living holder.
    prunes: int = 1
    orphans: int = 1  # The reconciler cancels an open intent that the row does not name.
    declines: int = 1
    days: int = 0  # Keys are pruned when nothing that used them can be under way any more.
    restores: int = 0

    def less(self, fault: str) -> "Budget":
        """One of a kind is used up."""
        return self._replace(**{fault: getattr(self, fault) - 1})


class Backup(NamedTuple):
    """The database as it was: the row, the job, and how much had been told by then."""

    row: int
    attempts: int
    told: int


class World(NamedTuple):
    """A state. Rows, calls, books, requests and what was told are numbers: see `Interned`."""

    row: int
    books: int
    budget: Budget
    due: tuple[str, ...]  # Deliveries to come, and what an operator will ask.
    workers: tuple[Worker | None, Worker | None] = (None, None)
    leased: bool = False  # The job's row names a lease, whoever may have had it.
    attempts: int = 0
    days: int = 0
    abandoned: tuple[int, ...] = ()  # Requests on their way that nobody waits for.
    told: int = 0  # The facts, in order; 0 is none.
    backup: Backup | None = None
    restored: bool = False

    def with_worker(self, at: int, worker: Worker | None, **changes: Any) -> "World":
        """Put a replica in its place. The two are alike, so their order means nothing."""
        other = self.workers[1 - at]
        pair = (worker, other) if _rank(worker) >= _rank(other) else (other, worker)
        return self._replace(workers=pair, **changes)

    def with_workers(self, change: Callable[[Worker], Worker]) -> "World":
        """Change whoever has a job in hand."""
        first, second = (worker and change(worker) for worker in self.workers)
        return self._replace(workers=(first, second)).with_worker(0, first)


def _rank(worker: Worker | None) -> tuple[int, ...]:
    return () if worker is None else worker
