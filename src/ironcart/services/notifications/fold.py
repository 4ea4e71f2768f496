"""What notifications' own facts say about its table: who was told, and how it went."""

from collections.abc import Sequence

from ironcart.events import OWNERS, NotificationFailed, NotificationSent
from ironcart.services.notifications.store import Store
from ironcart.toolkit.database import Connection
from ironcart.toolkit.recovery import Compared, Memory, OwnFact

Told = NotificationSent | NotificationFailed


async def fold(facts: Sequence[OwnFact], connection: Connection) -> None:
    """Apply facts to the table; what was told to an endpoint that is not known is left out."""
    await Store(connection).tell_again(
        [
            (
                told.order_id,
                told.template,
                told.channel,
                told.recipient_hash,
                told.reason if isinstance(told, NotificationFailed) else None,
            )
            for told in (_told(fact) for fact in facts)
        ]
    )


def _told(fact: OwnFact) -> Told:
    told: Told = fact.data
    return told


# Which endpoint a webhook went to is not told; what is still due has not been told at all.
_COMPARED = """
SELECT order_id, template, channel, state, reason, recipient_hash
FROM {schema}.notifications WHERE channel = 'mail' AND state <> 'due'
"""
STREAM, _KINDS = OWNERS["notifications"]
MEMORY = Memory(
    STREAM,
    {subject: kind for kind, subject in _KINDS.items()},
    fold,
    [Compared("notifications", _COMPARED)],
)
