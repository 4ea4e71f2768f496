"""Webhook endpoints: who wants to hear of which ends of orders, and where."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ironcart.toolkit.database import Connection, Database


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """One endpoint; `secret` is ciphertext, `disabled_at` when it said that it is gone for good."""

    endpoint_id: str
    url: str
    url_hash: str
    events: Sequence[str]
    secret: bytes
    created_at: datetime | None = None
    disabled_at: datetime | None = None

    def __repr__(self) -> str:
        return f"WebhookEndpoint({self.endpoint_id})"


class EndpointStore:
    """Speaks through one open transaction, or through the pool for single statements."""

    def __init__(self, connection: Connection | Database) -> None:
        self._connection = connection

    async def lock(self) -> None:
        """Let nobody else add or change an endpoint before this transaction ends."""
        await self._connection.execute("LOCK TABLE webhook_endpoints IN SHARE ROW EXCLUSIVE MODE")

    async def count(self, url: str) -> tuple[int, bool]:
        """Count the endpoints, and say whether one has this URL."""
        row = await self._connection.fetchrow(
            "SELECT count(*) AS n, coalesce(bool_or(url = $1), false) AS taken"
            " FROM webhook_endpoints",
            url,
        )
        assert row is not None
        return row["n"], row["taken"]

    async def add(self, endpoint: WebhookEndpoint) -> WebhookEndpoint:
        """Keep a new endpoint; returns it with the moment it was created."""
        row = await self._connection.fetchrow(
            "INSERT INTO webhook_endpoints (endpoint_id, url, url_hash, events, secret)"
            " VALUES ($1, $2, $3, $4, $5) RETURNING *",
            endpoint.endpoint_id,
            endpoint.url,
            endpoint.url_hash,
            endpoint.events,
            endpoint.secret,
        )
        assert row is not None
        return _endpoint(row)

    async def delete(self, endpoint_id: str) -> bool:
        """Forget an endpoint and its secret; False when there is none."""
        row = await self._connection.fetchrow(
            "DELETE FROM webhook_endpoints WHERE endpoint_id = $1 RETURNING endpoint_id",
            endpoint_id,
        )
        return row is not None

    async def disable(self, endpoint_ids: Collection[str]) -> None:
        """Note that these are gone for good."""
        await self._connection.execute(
            "UPDATE webhook_endpoints SET disabled_at = now()"
            " WHERE endpoint_id = ANY($1::text[]) AND disabled_at IS NULL",
            list(endpoint_ids),
        )

    async def enabled(self) -> list[WebhookEndpoint]:
        """Read every endpoint that is to be told."""
        rows = await self._connection.fetch(
            f"SELECT {_COLUMNS} FROM webhook_endpoints WHERE disabled_at IS NULL"  # noqa: S608 - constants
        )
        return [_endpoint(row) for row in rows]

    async def some(self, endpoint_ids: Collection[str]) -> dict[str, WebhookEndpoint]:
        """Read these endpoints, disabled ones included; a deleted one is left out."""
        rows = await self._connection.fetch(
            f"SELECT {_COLUMNS} FROM webhook_endpoints"  # noqa: S608 - constants
            " WHERE endpoint_id = ANY($1::text[])",
            list(endpoint_ids),
        )
        return {row["endpoint_id"]: _endpoint(row) for row in rows}

    async def page(self, after: str, count_max: int) -> list[WebhookEndpoint]:
        """Read endpoints by id, after one."""
        rows = await self._connection.fetch(
            f"SELECT {_COLUMNS} FROM webhook_endpoints WHERE endpoint_id > $1"  # noqa: S608 - constants
            " ORDER BY endpoint_id LIMIT $2",
            after,
            count_max,
        )
        return [_endpoint(row) for row in rows]


_COLUMNS = "endpoint_id, url, url_hash, events, secret, created_at, disabled_at"


def _endpoint(row: Any) -> WebhookEndpoint:
    return WebhookEndpoint(**dict(row.items()))
