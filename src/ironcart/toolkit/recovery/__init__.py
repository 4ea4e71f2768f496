"""Recovery: what a service does when its database is older than what it has already told.

A database may be restored to an earlier moment, or fail over to a copy that lacks the last commits.
What was published after that moment is still true, so it is read from the stream and folded into
the tables, never decided again; then the consumers start over, and the inbox absorbs what the
database still knows. Until all of that is caught up the history is `recovering`.
"""

from ironcart.toolkit.recovery.memory import Compared, Fold, Memory, OwnFact, own_fact
from ironcart.toolkit.recovery.recover import Recovery

__all__ = ["Compared", "Fold", "Memory", "OwnFact", "Recovery", "own_fact"]
