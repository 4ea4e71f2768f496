"""What notifications' own facts say about its table: who was told, and how it went."""

from collections.abc import Sequence

from ironcart.events import OWNERS, NotificationFailed, NotificationSent
from ironcart.services.notifications.gateway import message_id_of
from ironcart.services.notifications.store import MAIL, Store
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
                _message_id(told),
            )
            for told in (_told(fact) for fact in facts)
        ]
    )


def _message_id(told: Told) -> str | None:
    sent_by_mail = isinstance(told, NotificationSent) and told.channel == MAIL
    if not sent_by_mail:
        return None
    return message_id_of(told.order_id, told.template, told.recipient_hash)


def _told(fact: OwnFact) -> Told:
    told: Told = fact.data
    return told


# Which endpoint a webhook went to is not told; what is still due has not been told at all.
_COMPARED = """
SELECT order_id, template, channel, state, reason, recipient_hash, message_id
FROM {schema}.notifications WHERE channel = 'mail' AND state <> 'due'
"""
STREAM, _KINDS = OWNERS["notifications"]
MEMORY = Memory(
    STREAM,
    {subject: kind for kind, subject in _KINDS.items()},
    fold,
    [Compared("notifications", _COMPARED)],
)
