"""Webhooks: an endpoint is told, signed, until it says that it heard or a day has passed."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal, get_args

from msgspec import Struct

from ironcart.services.notifications.gateway import SecretBox, Webhooks
from ironcart.services.notifications.handlers.keys import job_key, notice_key
from ironcart.services.notifications.handlers.settling import settle
from ironcart.services.notifications.store import (
    EndpointStore,
    Notice,
    Store,
    Told,
    WebhookEndpoint,
)
from ironcart.toolkit.database import Connection
from ironcart.toolkit.envelope import encode_json
from ironcart.toolkit.jobs import Jobs, Settled
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.resilience import Backoff, BreakerOpen

EventName = Literal["order.confirmed", "order.rejected", "order.cancelled"]
EVENTS: Final[tuple[EventName, ...]] = get_args(EventName)
RETRY_FOR_S: Final = 86_400.0
RETRY: Final = Backoff(first_s=1.0, max_s=1_800.0)
# What is held back looks again after a wait that grows with its age, so that a long outage costs
# little; and no later than this, so that it ends soon after.
HELD_AGE_SHARE: Final = 0.1
HELD_S_MAX: Final = 600.0
# Published for ever: webhook ids are uuid5(WEBHOOK_NAMESPACE, "<order>/<template>/<endpoint>").
WEBHOOK_NAMESPACE: Final = uuid.UUID("5c3a63d9-9d1f-5d0c-8f0e-3a8f9d3a2b17")
# Why an endpoint was not told, for good.
GONE: Final = "gone"
DISABLED: Final = "endpoint_disabled"
DELETED: Final = "endpoint_deleted"
GAVE_UP: Final = "gave_up"


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """One thing to tell one endpoint; None when that was deleted meanwhile."""

    notice: Notice
    endpoint: WebhookEndpoint | None


class OrderEnded(Struct, frozen=True):
    """What an endpoint hears of an order; nothing in it is personal."""

    order_id: str
    customer_id: str
    status: str
    amount: Decimal
    currency: str
    reason: str | None


class WebhookBody(Struct, frozen=True):
    """What travels; `timestamp` is when the order ended."""

    type: str
    timestamp: datetime | None
    data: OrderEnded


WebhookJobs = Jobs[WebhookDelivery, Told]


def event_name(notice: Notice) -> str:
    """What endpoints call it."""
    return f"order.{notice.template}"


def webhook_id(notice: Notice) -> str:
    """The id that all deliveries of one thing to one endpoint share."""
    name = f"{notice.order_id}/{notice.template}/{notice.endpoint_id}"
    return str(uuid.uuid5(WEBHOOK_NAMESPACE, name))


def body_of(notice: Notice) -> bytes:
    """What is sent: the same bytes each time."""
    amount = Decimal(notice.amount.replace(",", ""))
    ended = OrderEnded(
        notice.order_id,
        notice.customer_id,
        notice.template,
        amount,
        notice.currency,
        notice.reason,
    )
    return encode_json(WebhookBody(event_name(notice), notice.ended_at, ended))


def held_s(wait_s: float, due_for_s: float) -> float:
    """How long a delivery that was not tried waits: at least `wait_s`, the older the longer."""
    share = min(due_for_s * HELD_AGE_SHARE, HELD_S_MAX)
    return wait_s + Backoff(first_s=share, max_s=HELD_S_MAX).delay_s(1)


class Delivering:
    """The work of a delivery's job: call the endpoint, and write down what came of it."""

    def __init__(self, webhooks: Webhooks, box: SecretBox) -> None:
        self._webhooks, self._box = webhooks, box

    async def load(
        self, connection: Connection, keys: Sequence[str]
    ) -> Mapping[str, WebhookDelivery]:
        """Read what is still to be delivered, and where to."""
        due = await Store(connection).due([notice_key(key) for key in keys])
        endpoints = await EndpointStore(connection).some({notice.endpoint_id for notice in due})
        return {
            job_key(notice.key): WebhookDelivery(notice, endpoints.get(notice.endpoint_id))
            for notice in due
        }

    async def call(self, payload: WebhookDelivery, attempts: int) -> Told:
        """Deliver once; raises `Unavailable` when it has to be tried again, for a day."""
        notice, endpoint = payload.notice, payload.endpoint
        key, hashed = webhook_id(notice), notice.recipient_hash
        if endpoint is None:
            return Told(hashed, key, DELETED)
        if endpoint.disabled_at is not None:
            return Told(hashed, key, DISABLED)
        last = notice.due_for_s >= RETRY_FOR_S
        try:
            secret = self._box.open(endpoint.endpoint_id, endpoint.secret)
            heard = await self._webhooks.deliver(
                endpoint.endpoint_id, endpoint.url, secret, key, body_of(notice)
            )
        except BreakerOpen as error:
            if last:
                return Told(hashed, key, GAVE_UP)
            wait_s = held_s(error.retry_after_s or 0.0, notice.due_for_s)
            raise BreakerOpen(str(error), wait_s) from error
        except Unavailable as error:
            if last:
                return Told(hashed, key, GAVE_UP)
            raise Unavailable(str(error), RETRY.delay_s(attempts + 1)) from error
        return Told(hashed, key, None if heard else GONE)

    async def settle(
        self, connection: Connection, results: Sequence[tuple[WebhookDelivery, Told]]
    ) -> list[Settled[WebhookDelivery]]:
        """Write down what came of it, and say so; an endpoint that is gone is not called again."""
        settled = await settle(connection, [(each.notice, told) for each, told in results])
        gone = {each.notice.endpoint_id for each, told in results if told.reason == GONE}
        if gone:
            await EndpointStore(connection).disable(gone)
        return settled
