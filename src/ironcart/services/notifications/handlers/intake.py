"""Taking in: an order's end becomes one notice by mail, and one for each endpoint that wants it."""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ironcart.events import OrderCancelled, OrderConfirmed, OrderRejected, minor_units, money
from ironcart.services.notifications.handlers.keys import job_key
from ironcart.services.notifications.handlers.mail import NoticeJobs
from ironcart.services.notifications.handlers.webhooks import (
    WebhookDelivery,
    WebhookJobs,
    event_name,
)
from ironcart.services.notifications.store import (
    WEBHOOK,
    EndpointStore,
    Key,
    Notice,
    Store,
    WebhookEndpoint,
)
from ironcart.toolkit.database import Transaction
from ironcart.toolkit.loop import Message
from ironcart.toolkit.outcomes import Done, Outcome

TEMPLATES: Final[Mapping[type[Struct], str]] = {
    OrderConfirmed: "confirmed",
    OrderRejected: "rejected",
    OrderCancelled: "cancelled",
}


def notice_of(message: Message) -> Notice:
    """What an order's end leads to."""
    data: OrderConfirmed | OrderRejected | OrderCancelled = message.data
    units = minor_units(data.amount, data.currency)
    return Notice(
        order_id=data.order_id,
        template=TEMPLATES[type(data)],
        customer_id=data.customer_id,
        amount=f"{money(units, data.currency):,f}",
        currency=data.currency,
        reason=data.reason,
        contact=data.contact,
        cause=message.cause,
        ended_at=message.envelope.timestamp,
    )


def deliveries_of(
    notices: Sequence[Notice], endpoints: Sequence[WebhookEndpoint]
) -> list[WebhookDelivery]:
    """What these lead to beyond mail: one delivery for each endpoint that wants to hear of it."""
    return [
        WebhookDelivery(
            replace(
                notice,
                channel=WEBHOOK,
                endpoint_id=endpoint.endpoint_id,
                recipient_hash=endpoint.url_hash,
                contact=None,
            ),
            endpoint,
        )
        for notice in notices
        for endpoint in endpoints
        if event_name(notice) in endpoint.events
    ]


async def take_in(
    messages: Sequence[Message],
    transaction: Transaction,
    mails: NoticeJobs,
    deliveries: WebhookJobs,
) -> list[Outcome]:
    """Note what is to be told, and a job for each; to each by mail or endpoint it is told once.

    A webhook does not depend on the mail being new: after a database was restored, one of them may
    be known to have been told and the other not.
    """
    notices: dict[Key, Notice] = {}
    for message in messages:
        notice = notice_of(message)
        notices.setdefault(notice.key, notice)
    store = Store(transaction.connection)
    if added := await store.add(list(notices.values())):
        await mails.add(
            transaction, {job_key(key): notices[key] for key in notices if key in added}
        )
    endpoints = await EndpointStore(transaction.connection).enabled()
    if wanted := deliveries_of(list(notices.values()), endpoints):
        added = await store.add([each.notice for each in wanted])
        new = {job_key(each.notice.key): each for each in wanted if each.notice.key in added}
        await deliveries.add(transaction, new)
    return [Done() for _ in messages]
