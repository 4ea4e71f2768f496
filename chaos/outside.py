"""What can be seen from outside: HTTP, metrics, the database, the broker, the sandbox."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncpg
import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError

from chaos.system import SERVICES, System

HTTP_TIMEOUT_S = 2.0
SEND_TIMEOUT_S = 10.0
DATABASE_TIMEOUT_S = 3.0
CONNECT_TIMEOUT_S = 2
ANSWER_TIMEOUT_S = 0.8
LOOK_EVERY_S = 0.2
COUNTED_AGAIN_MAX = 5
STREAMS = ("ORDERS", "INVENTORY", "PAYMENTS", "NOTIFICATIONS", "DEADLETTERS")
OPEN_WORK = """
SELECT (SELECT count(*) FROM orders.orders
        WHERE status IS NOT NULL AND status NOT IN ('confirmed', 'rejected', 'cancelled')
          AND created_at < now() - make_interval(secs => $1))
     + (SELECT count(*) FROM payments.jobs WHERE created_at < now() - make_interval(secs => $1))
     + (SELECT count(*) FROM notifications.jobs
        WHERE created_at < now() - make_interval(secs => $1)) AS n
"""
AWAY = (
    *(OSError, TimeoutError, aiohttp.ClientError, NatsError),
    *(asyncpg.PostgresError, asyncpg.InterfaceError),
)

Key = tuple[str, tuple[tuple[str, str], ...]]
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def parse_metrics(text: str) -> dict[Key, float]:
    """Read Prometheus's text format: value by name and labels in order."""
    found: dict[Key, float] = {}
    for line in text.splitlines():
        if match := _SAMPLE.match(line):
            name, labels, value = match.groups()
            found[name, tuple(sorted(_LABEL.findall(labels or "")))] = float(value)
    return found


def total(metrics: dict[Key, float], name: str, **labels: str) -> float:
    """Add up every series of a metric that has these labels."""
    wanted = set(labels.items())
    return sum(
        value for (found, has), value in metrics.items() if found == name and wanted <= set(has)
    )


class Outside:
    """An observer of one system. Everything here may find its part away: None, or `AWAY`."""

    def __init__(self, system: System, session: aiohttp.ClientSession) -> None:
        self.system = system
        self.session = session

    async def get(self, part: str, path: str, timeout_s: float = HTTP_TIMEOUT_S) -> Any:
        """GET a JSON document from a service or the sandbox; raises one of `AWAY`."""
        limit = aiohttp.ClientTimeout(total=timeout_s)
        async with self.session.get(self.system.url_of(part) + path, timeout=limit) as response:
            return json.loads(await response.read())

    async def send(
        self, part: str, path: str, body: Any = None, method: str = "POST"
    ) -> tuple[int, Any]:
        """Send a JSON document; returns the status and the answer, raises one of `AWAY`."""
        limit = aiohttp.ClientTimeout(total=SEND_TIMEOUT_S)
        async with self.session.request(
            method, self.system.url_of(part) + path, json=body, timeout=limit
        ) as response:
            answer = await response.read()
            return response.status, json.loads(answer) if answer else None

    async def post(self, part: str, path: str, body: Any = None) -> int:
        """POST a JSON document; returns the status, raises one of `AWAY`."""
        return (await self.send(part, path, body))[0]

    async def put(self, part: str, path: str, body: Any) -> int:
        """PUT a JSON document; returns the status, raises one of `AWAY`."""
        return (await self.send(part, path, body, "PUT"))[0]

    async def answers(self, part: str, path: str = "/health") -> str:
        """Say how a service answers now: its status, or the kind of failure."""
        limit = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        try:
            async with self.session.get(self.system.url_of(part) + path, timeout=limit) as response:
                return str(response.status)
        except TimeoutError:
            return "no answer"
        except (aiohttp.ClientError, OSError) as error:
            refused = isinstance(error, aiohttp.ClientConnectorError)
            return "connection refused" if refused else "connection lost"

    async def metrics(self, service: str) -> dict[Key, float]:
        """Return every metric of a service; none when it is away."""
        limit = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
        try:
            url = f"{self.system.url_of(service)}/metrics"
            async with self.session.get(url, timeout=limit) as response:
                return parse_metrics(await response.text())
        except (*AWAY, ValueError):
            return {}

    async def gauge(
        self, name: str, *, services: tuple[str, ...] = SERVICES, **labels: str
    ) -> float:
        """Add up a metric over services as it is now."""
        found = await asyncio.gather(*(self.metrics(service) for service in services))
        return sum(total(each, name, **labels) for each in found)

    @asynccontextmanager
    async def database(self, timeout_s: float = DATABASE_TIMEOUT_S) -> AsyncIterator[Any]:
        """Connect to Postgres itself for the length of a `with`; raises one of `AWAY`."""
        connection = await asyncpg.connect(
            self.system.run()["postgres"]["url"],
            timeout=DATABASE_TIMEOUT_S,
            command_timeout=timeout_s,
        )
        try:
            yield connection
        finally:
            with contextlib.suppress(*AWAY):
                await connection.close(timeout=1)

    async def fetch(self, query: str, *values: Any) -> list[Any]:
        """Ask Postgres; raises one of `AWAY`."""
        async with self.database() as connection:
            return list(await connection.fetch(query, *values))

    async def open_work(self, older_than_s: float) -> int | None:
        """Count orders and calls to the outside that are older and not at their end."""
        try:
            rows = await self.fetch(OPEN_WORK, older_than_s)
        except AWAY:
            return None
        return int(rows[0]["n"])

    async def consumers(self) -> list[dict[str, Any]]:
        """Return what the broker's monitor page says about each consumer; none when it is away."""
        limit = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
        try:
            url = f"{self.system.run()['nats']['monitor_urls'][0]}/jsz?consumers=true"
            async with self.session.get(url, timeout=limit) as response:
                accounts = json.loads(await response.read()).get("account_details", [])
        except (*AWAY, ValueError, KeyError):
            return []
        return [
            consumer
            for account in accounts
            for stream in account.get("stream_detail", [])
            for consumer in stream.get("consumer_detail") or []
        ]

    async def lag(self) -> int | None:
        """Count messages not yet acknowledged, over all consumers; None when nobody can say."""
        found = await self.consumers()
        if not found:
            return None
        return sum(
            int(each.get("num_pending", 0)) + int(each.get("num_ack_pending", 0)) for each in found
        )

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[Client]:
        """Connect to the broker itself for the length of a `with`; raises one of `AWAY`."""

        async def ignore(_: Exception) -> None:
            """What is raised to us need not be logged too."""

        client = await nats.connect(
            self.system.run()["nats"]["urls"],
            connect_timeout=CONNECT_TIMEOUT_S,
            max_reconnect_attempts=1,
            error_cb=ignore,
            name="chaos",
        )
        try:
            yield client
        finally:
            await client.close()

    async def redelivered(self) -> int:
        """Count deliveries that were repeats, over all consumers, since these were made."""
        async with self.broker() as client:
            return sum([await repeats_of(client, stream) for stream in STREAMS])

    async def until(
        self, check: Callable[[], Awaitable[object]], within_s: float, every_s: float = LOOK_EVERY_S
    ) -> bool:
        """Look again and again until `check` is true; False when `within_s` passed before."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + within_s
        while True:
            with contextlib.suppress(*AWAY, FileNotFoundError, ValueError):
                if await check():
                    return True
            if clock() >= deadline:
                return False
            await asyncio.sleep(every_s)


async def _api(client: Client, subject: str, body: Any = None) -> dict[str, Any]:
    reply = await client.request(f"$JS.API.{subject}", json.dumps(body or {}).encode(), timeout=2)
    found: dict[str, Any] = json.loads(reply.data)
    if error := found.get("error"):
        raise ConnectionError(f"JetStream: {error.get('description')}")
    return found


async def repeats_of(client: Client, stream: str) -> int:
    """Deliveries minus messages delivered, for the consumers of a stream.

    Both are asked for until nothing has been stored in between.
    """
    repeats = 0
    for _ in range(COUNTED_AGAIN_MAX):
        before = (await _api(client, f"STREAM.INFO.{stream}", {"subjects_filter": ">"}))["state"]
        listed = (await _api(client, f"CONSUMER.LIST.{stream}"))["consumers"] or []
        subjects = before.get("subjects") or {}
        repeats = 0
        for each in listed:
            config = each["config"]
            wanted = config.get("filter_subjects") or [config.get("filter_subject") or ">"]
            there = sum(count for subject, count in subjects.items() if _matches(subject, wanted))
            repeats += each["delivered"]["consumer_seq"] - (there - each["num_pending"])
        after = (await _api(client, f"STREAM.INFO.{stream}"))["state"]
        if after["last_seq"] == before["last_seq"]:
            break
    return max(0, repeats)


async def delivered_again(urls: Sequence[str]) -> int:
    """How many deliveries of all streams were repeats."""
    client = await nats.connect(list(urls))
    try:
        return sum([await repeats_of(client, stream) for stream in STREAMS])
    finally:
        await client.close()


def _matches(subject: str, wanted: list[str]) -> bool:
    return any(
        each in (subject, ">") or (each.endswith(".>") and subject.startswith(each[:-1]))
        for each in wanted
    )
