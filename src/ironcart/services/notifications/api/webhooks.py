"""Webhook endpoints over HTTP: register one, see them, take one away. A secret is shown once."""

import urllib.parse
import uuid
from datetime import datetime
from typing import Annotated

from litestar import Response
from msgspec import Meta, Struct

from ironcart.services.notifications.gateway import (
    SECRET_PATTERN,
    SecretBox,
    may_be_called,
    new_secret,
    read_secret,
    write_secret,
)
from ironcart.services.notifications.handlers.keys import job_key
from ironcart.services.notifications.handlers.webhooks import EVENTS, EventName, WebhookJobs
from ironcart.services.notifications.store import EndpointStore, Store, WebhookEndpoint
from ironcart.toolkit.database import Database, Transaction
from ironcart.toolkit.envelope import NAME_PATTERN, Name
from ironcart.toolkit.http import Endpoint, Fault, Operation, Parameter, Problem, json_response
from ironcart.toolkit.http.routes import (
    PAGING,
    Answer,
    Call,
    read_cursor,
    read_limit,
    read_name,
    read_struct,
    write_cursor,
)

ENDPOINTS_MAX = 100
URL_CHARACTERS_MAX = 2_048
# Open deliveries of a deleted endpoint that are ended at once; the others when they come due.
ENDED_AT_ONCE_MAX = 10_000

# What a URL looks like; `may_be_called` knows the rest.
URL_PATTERN = r"^https?://[!-~]{1,2040}\Z"

Url = Annotated[str, Meta(pattern=URL_PATTERN, max_length=URL_CHARACTERS_MAX)]
Secret = Annotated[str, Meta(pattern=SECRET_PATTERN)]


class PostWebhookEndpoint(Struct, frozen=True, forbid_unknown_fields=True):
    """Where to deliver, which events (default: all), and a secret of the caller's own if wished."""

    url: Url
    events: Annotated[list[EventName], Meta(min_length=1, max_length=len(EVENTS))] | None = None
    secret: Secret | None = None


class WebhookEndpointView(Struct, frozen=True):
    """One endpoint; `disabled_at` is when it answered 410, after which nothing is delivered."""

    id: Name
    url: Url
    events: list[EventName]
    created_at: datetime
    disabled_at: datetime | None


class NewWebhookEndpoint(Struct, frozen=True):
    """An endpoint just registered, with the secret that its deliveries are signed with."""

    id: Name
    url: Url
    events: list[EventName]
    created_at: datetime
    disabled_at: datetime | None
    secret: Secret


class WebhookEndpointPage(Struct, frozen=True):
    """Endpoints, by id."""

    items: list[WebhookEndpointView]
    next_cursor: str | None


class Position(Struct, frozen=True):
    """Where a page ended."""

    after: Name


class Api:
    """The routes of webhook endpoints."""

    def __init__(
        self, database: Database, jobs: WebhookJobs, box: SecretBox, *, allow_private: bool
    ) -> None:
        self._database, self._jobs, self._box = database, jobs, box
        self._allow_private = allow_private

    async def post_endpoint(self, request: Call) -> Answer:
        """Register an endpoint."""
        body = await read_struct(request, PostWebhookEndpoint)
        secret, faults = new_secret(), []
        if not may_be_called(body.url, allow_private=self._allow_private):
            detail = "use http or https, a host that is reached from the internet, and no user"
            faults.append(Fault("/url", detail))
        elif "@" in urllib.parse.unquote(body.url):
            faults.append(Fault("/url", "leave the @ out: a URL is kept in the clear"))
        if body.secret is not None:
            try:
                secret = read_secret(body.secret)
            except ValueError:
                faults.append(Fault("/secret", "use whsec_ and base64 of 24 to 64 bytes"))
        if faults:
            raise Problem(400, "the body is not valid", faults=faults)
        endpoint_id = f"WHE-{uuid.uuid4().hex}"
        endpoint = WebhookEndpoint(
            endpoint_id,
            body.url,
            self._box.url_hash(body.url),
            [event for event in EVENTS if event in (body.events or EVENTS)],
            self._box.seal(endpoint_id, secret),
        )
        async with self._database.transaction() as connection:
            store = EndpointStore(connection)
            await store.lock()
            count, taken = await store.count(body.url)
            if taken:
                raise Problem(409, "this URL is registered: delete its endpoint first")
            if count >= ENDPOINTS_MAX:
                raise Problem(409, f"there can be {ENDPOINTS_MAX} endpoints: delete one first")
            added = await store.add(endpoint)
        view = _view(added)
        answer = NewWebhookEndpoint(
            view.id, view.url, view.events, view.created_at, None, write_secret(secret)
        )
        return json_response(answer, 201, {"Location": f"/webhook-endpoints/{view.id}"})

    async def list_endpoints(self, request: Call) -> Answer:
        """List endpoints."""
        limit = read_limit(request)
        position = read_cursor(request, Position)
        after = position.after if position else ""
        found = await EndpointStore(self._database).page(after, limit + 1)
        cursor = None
        if len(found) > limit:
            found = found[:limit]
            cursor = write_cursor(Position(found[-1].endpoint_id))
        return json_response(WebhookEndpointPage([_view(each) for each in found], cursor))

    async def get_endpoint(self, request: Call) -> Answer:
        """Show one endpoint."""
        endpoint_id = read_name(request, "endpoint_id")
        found = await EndpointStore(self._database).some([endpoint_id])
        if endpoint_id not in found:
            raise _unknown()
        return json_response(_view(found[endpoint_id]))

    async def delete_endpoint(self, request: Call) -> Answer:
        """Take an endpoint away; what was still to be delivered ends as failed."""
        endpoint_id = read_name(request, "endpoint_id")
        transaction: Transaction
        async with self._database.transaction() as connection:
            transaction = Transaction(connection)
            due = await Store(connection).due_at(endpoint_id, ENDED_AT_ONCE_MAX)
            # Jobs are locked before endpoints, as when a call is settled.
            await self._jobs.hasten(transaction, [job_key(key) for key in due])
            if not await EndpointStore(connection).delete(endpoint_id):
                raise _unknown()
        for hurry in transaction.after_commit:
            hurry()
        return Response(None, status_code=204)


def endpoints(
    database: Database, jobs: WebhookJobs, box: SecretBox, *, allow_private: bool
) -> list[Endpoint]:
    """The routes, with their documentation."""
    api = Api(database, jobs, box, allow_private=allow_private)
    schema = {"type": "string", "pattern": NAME_PATTERN}
    parameter = Parameter("endpoint_id", "path", "the endpoint's id", schema)
    one, many = "/webhook-endpoints/{endpoint_id}", "/webhook-endpoints"
    posting = Operation(
        "Register an endpoint for signed webhooks",
        {201: NewWebhookEndpoint},
        (400, 409, 413, 415),
        body=PostWebhookEndpoint,
        example={"url": "https://shop.example/hooks", "events": ["order.confirmed"]},
        headers={201: {"Location": "where the endpoint is"}},
    )
    listing = Operation("List webhook endpoints", {200: WebhookEndpointPage}, (400,), PAGING)
    seeing = Operation(
        "See a webhook endpoint", {200: WebhookEndpointView}, (400, 404), (parameter,)
    )
    deleting = Operation("Delete a webhook endpoint", {204: None}, (400, 404), (parameter,))
    return [
        Endpoint("POST", many, api.post_endpoint, posting),
        Endpoint("GET", many, api.list_endpoints, listing),
        Endpoint("GET", one, api.get_endpoint, seeing),
        Endpoint("DELETE", one, api.delete_endpoint, deleting),
    ]


def _view(endpoint: WebhookEndpoint) -> WebhookEndpointView:
    assert endpoint.created_at is not None
    return WebhookEndpointView(
        endpoint.endpoint_id,
        endpoint.url,
        list(endpoint.events),  # type: ignore[arg-type] # written by us
        endpoint.created_at,
        endpoint.disabled_at,
    )


def _unknown() -> Problem:
    return Problem(404, "there is no such endpoint")
