"""A service's own history: facts are committed here before they travel, and swept until they do."""

from ironcart.toolkit.history.events import Cause, Commit, History, Recorded, stored_trace
from ironcart.toolkit.history.inbox import admit, count_failure, withdraw
from ironcart.toolkit.history.outbox import Outbox

__all__ = [
    "Cause",
    "Commit",
    "History",
    "Outbox",
    "Recorded",
    "admit",
    "count_failure",
    "stored_trace",
    "withdraw",
]
