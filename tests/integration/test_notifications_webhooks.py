"""Webhooks from a real service to real receivers, good and bad ones, over loopback."""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from notifications_audit_parts import Running, event, migrate, running, until

from ironcart.embedded.nats_server import NatsServer
from ironcart.events import OrderConfirmed, OrderRejected
from ironcart.services.notifications.api.webhooks import ENDPOINTS_MAX
from ironcart.services.notifications.app import SERVICE, Settings
from ironcart.services.notifications.gateway import Webhooks
from ironcart.services.notifications.gateway import webhooks as gateway
from ironcart.toolkit.broker import Outgoing
from ironcart.toolkit.database import Database
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.resilience import Backoff
from ironcart.toolkit.vault import Contact, Sealed, Vault, new_master_key

MASTER_KEY = new_master_key()
AMOUNT = Decimal("39.98")
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
NOBODY = "smtp://127.0.0.1:1"
HOOKS = "/webhook-endpoints"
RETRY = "ironcart.services.notifications.handlers.webhooks.RETRY"

Answer = Callable[[int], web.Response]


class Receiver:
    """Who is called: says what its path's answer says, and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, str], bytes]] = []
        self.statuses: dict[str, list[int]] = {}
        self.hanging = asyncio.Event()
        self.waiting = self.waiting_max = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.heard.append((request.path, headers, body))
        if request.path == "/hang":
            self.waiting += 1
            self.waiting_max = max(self.waiting, self.waiting_max)
            try:
                await self.hanging.wait()
            finally:
                self.waiting -= 1
        statuses = self.statuses.get(request.path, [])
        status = statuses.pop(0) if statuses else 200
        return web.Response(status=status, headers={"Location": "/elsewhere"}, body=b"x" * 10_000)

    def at(self, path: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
        return [(headers, json.loads(body)) for at, headers, body in self.heard if at == path]

    def orders(self, path: str) -> set[str]:
        return {body["data"]["order_id"] for _, body in self.at(path)}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", found.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    found.hanging.set()
    await runner.cleanup()


@asynccontextmanager
async def notifications(
    broker: NatsServer, database_url: str, *, allow_private: bool = True
) -> AsyncIterator[Running]:
    await migrate(database_url, "notifications")
    await migrate(database_url, "vault")
    own = Settings(
        vault_database_url=database_url,
        master_key=MASTER_KEY,
        smtp_url=NOBODY,
        webhooks_allow_private=allow_private,
    )
    async with running(SERVICE, own, broker.url, database_url) as found:
        yield found


@pytest.fixture
async def service(own_broker: NatsServer, database_url: str) -> AsyncIterator[Running]:
    async with notifications(own_broker, database_url) as found:
        yield found


async def ask(service: Running, method: str, path: str, body: Any = None, status: int = 200) -> Any:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{service.api.url}{path}", json=body) as answer,
    ):
        text = await answer.text()
        assert answer.status == status, text
        return json.loads(text) if text else None


async def register(service: Running, url: str, **rest: Any) -> str:
    found = await ask(service, "POST", HOOKS, {"url": url, "secret": SECRET, **rest}, 201)
    return str(found["id"])


def confirmed(order_id: str, contact: str | None = None) -> Outgoing:
    return event("orders", OrderConfirmed(order_id, "C-1", AMOUNT, "EUR", contact=contact))


async def items(service: Running, order_id: str = "") -> dict[str, dict[str, Any]]:
    narrowed = f"&order_id={order_id}" if order_id else ""
    found = await service.api.get(f"/notifications?limit=500{narrowed}")
    return {f"{each['order_id']} {each['endpoint_id']}": each for each in found["items"]}


async def ended(service: Running, order_id: str, endpoint_id: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        item = (await items(service, order_id)).get(f"{order_id} {endpoint_id}")
        return item if item and item["state"] != "due" else None

    found: dict[str, Any] = await until(look)
    return found


def verified(headers: dict[str, str], body: bytes) -> bool:
    """What the README tells storefront developers to do."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    given = headers["webhook-signature"].split()
    return any(hmac.compare_digest(f"v1,{expected}", each) for each in given)


async def test_an_endpoint_hears_signed_and_once_of_what_it_asked_for(
    service: Running, receiver: Receiver
) -> None:
    everything = await register(service, f"{receiver.url}/all")
    some = await register(service, f"{receiver.url}/some", events=["order.rejected"])
    first = confirmed("ORD-1")
    again = Outgoing("another-message-id", first.subject, first.body, first.headers)
    other = event("orders", OrderConfirmed("ORD-1", "C-1", AMOUNT, "EUR"), 3)
    rejected = event("orders", OrderRejected("ORD-2", "C-1", AMOUNT, "EUR", "out_of_stock"))
    await service.publish([first, again, other, rejected])
    assert (await ended(service, "ORD-2", some))["state"] == "sent"
    assert (await ended(service, "ORD-2", everything))["state"] == "sent"
    item = await ended(service, "ORD-1", everything)
    assert (await ended(service, "ORD-1", "None"))["reason"] == "no_contact"

    assert [body["type"] for _, body in receiver.at("/some")] == ["order.rejected"]
    assert sorted(body["data"]["order_id"] for _, body in receiver.at("/all")) == [
        "ORD-1",
        "ORD-2",
    ]
    assert all(verified(headers, body) for _, headers, body in receiver.heard)
    ids = {headers["webhook-id"] for _, headers, _ in receiver.heard}
    assert len(ids) == 3
    assert (item["channel"], item["state"], item["reason"]) == ("webhook", "sent", None)
    assert item["message_id"] in ids

    facts = await service.database.fetch("SELECT version, type, body FROM events")
    assert len(facts) == 5
    of_first = [f for f in facts if json.loads(f["body"])["aggregate_id"] == "ORD-1"]
    assert {fact["version"] for fact in of_first} == {1, 2}
    channels = {json.loads(f["body"])["data"]["channel"]: f["type"] for f in of_first}
    assert channels == {"mail": "NotificationFailed", "webhook": "NotificationSent"}
    assert await service.database.fetch("SELECT * FROM jobs") == []


async def test_whatever_is_not_2xx_is_tried_again_and_410_never_again(
    service: Running, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RETRY, Backoff(first_s=0.05, max_s=0.05))
    receiver.statuses = {"/wavering": [500, 302, 404], "/gone": [410]}
    wavering = await register(service, f"{receiver.url}/wavering")
    gone = await register(service, f"{receiver.url}/gone")
    await service.publish([confirmed("ORD-1")])
    assert (await ended(service, "ORD-1", wavering))["state"] == "sent"
    assert (await ended(service, "ORD-1", gone))["reason"] == "gone"
    calls = receiver.at("/wavering")
    assert len(calls) == 4
    assert len({headers["webhook-id"] for headers, _ in calls}) == 1
    assert len({body for path, _, body in receiver.heard if path == "/wavering"}) == 1
    assert receiver.at("/elsewhere") == []  # where 302 pointed to

    assert (await ask(service, "GET", f"{HOOKS}/{gone}"))["disabled_at"] is not None
    await service.publish([confirmed("ORD-2")])
    assert (await ended(service, "ORD-2", wavering))["state"] == "sent"
    assert f"ORD-2 {gone}" not in await items(service)
    assert len(receiver.at("/gone")) == 1


async def test_a_mail_server_that_is_down_holds_up_no_webhook(
    service: Running, receiver: Receiver, database_url: str
) -> None:
    keys = Database(database_url, "vault", "test")
    (contact,) = await Vault(keys, MASTER_KEY).seal([("C-1", Contact("anna@b.example"))])
    await keys.close()
    assert isinstance(contact, Sealed)
    await service.publish([confirmed(f"ORD-{n}", contact.text) for n in range(20)])

    async def mail_waits() -> bool:
        rows = await service.database.fetch("SELECT FROM jobs WHERE attempts > 0")
        return len(rows) >= 6

    await until(mail_waits)
    hook = await register(service, f"{receiver.url}/hook")
    await service.publish([confirmed("ORD-later", contact.text)])
    assert (await ended(service, "ORD-later", hook))["state"] == "sent"
    assert {
        each["state"] for each in (await items(service)).values() if not each["endpoint_id"]
    } == {"due"}


async def test_an_endpoint_that_hangs_holds_up_neither_others_nor_mail(
    service: Running, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "IN_LINE_MAX", 40)
    hanging = await register(service, f"{receiver.url}/hang")
    await register(service, f"{receiver.url}/good")
    orders = [f"ORD-{n}" for n in range(150)]
    await service.publish([confirmed(order_id) for order_id in orders])

    async def good_heard_of_all() -> bool:
        return receiver.orders("/good") == set(orders)

    async def mail_ended() -> bool:
        rows = await service.database.fetch(
            "SELECT count(*) AS n FROM notifications WHERE channel = 'mail' AND state = 'failed'"
        )
        return bool(rows[0]["n"] == len(orders))

    await until(good_heard_of_all)
    await until(mail_ended)
    assert 1 <= receiver.waiting_max <= gateway.CALLS_PER_ENDPOINT_MAX
    rows = await service.database.fetch(
        "SELECT FROM notifications WHERE endpoint_id = $1 AND state = 'due'", hanging
    )
    assert len(rows) == len(orders)

    # What was still to be said to an endpoint ends with it.
    await ask(service, "DELETE", f"{HOOKS}/{hanging}", status=204)
    await ask(service, "DELETE", f"{HOOKS}/{hanging}", status=404)
    receiver.hanging.set()

    async def nothing_left() -> bool:
        return not await service.database.fetch("SELECT FROM jobs LIMIT 1")

    await until(nothing_left)
    rows = await service.database.fetch(
        "SELECT state, coalesce(reason, '') AS reason, count(*) AS n FROM notifications"
        " WHERE endpoint_id = $1 GROUP BY state, reason",
        hanging,
    )
    counts = {(row["state"], row["reason"]): row["n"] for row in rows}
    assert set(counts) <= {("failed", "endpoint_deleted"), ("sent", "")}
    # Those in line for it had been read before it was deleted.
    assert counts["failed", "endpoint_deleted"] >= len(orders) - gateway.IN_LINE_MAX
    versions = await service.database.fetch(
        "SELECT DISTINCT array_agg(version ORDER BY version) AS v FROM events GROUP BY aggregate_id"
    )
    assert [row["v"] for row in versions] == [[1, 2, 3]]


async def test_an_address_that_is_not_public_is_refused_when_it_is_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = receiver.url.rpartition(":")[2]
    names = {"rebound.example": "127.0.0.1", "mapped.example": "::ffff:127.0.0.1"}
    real = socket.getaddrinfo

    def look_up(host: str, *rest: Any) -> Any:
        return real(names.get(host, host), *rest)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    careful, open_to_all = Webhooks(), Webhooks(allow_private=True)
    deliver = partial(careful.deliver, secret=b"s" * 24, webhook_id="1", body=b"{}")
    for host in ("127.0.0.1", "localhost", *names):
        with pytest.raises(Unavailable, match="not public"):
            await deliver(f"WHE-{host}", f"http://{host}:{port}/private")
    for host in ("0x7f.1", "2130706433", "nobody.invalid"):
        with pytest.raises(Unavailable):
            await deliver(f"WHE-{host}", f"http://{host}:{port}/private")
    assert receiver.heard == []
    assert await open_to_all.deliver("WHE-1", f"{receiver.url}/", b"s" * 24, "1", b"{}")
    for webhooks in (careful, open_to_all):
        await webhooks.close()


async def test_endpoints_are_registered_listed_and_deleted_and_a_secret_is_shown_once(
    own_broker: NatsServer, database_url: str
) -> None:
    async with notifications(own_broker, database_url, allow_private=False) as service:
        made = await ask(service, "POST", HOOKS, {"url": "https://a.example/0"}, 201)
        assert made["secret"].startswith("whsec_")
        assert len(base64.b64decode(made["secret"].removeprefix("whsec_"))) >= 24
        assert made["events"] == ["order.confirmed", "order.rejected", "order.cancelled"]
        shown = await ask(service, "GET", f"{HOOKS}/{made['id']}")
        assert shown == {key: made[key] for key in made if key != "secret"}
        for n in (1, 2, 3, 4):
            await ask(service, "POST", HOOKS, {"url": f"https://a.example/{n}"}, 201)
        listed, cursor = [], ""
        while cursor is not None:
            page = await ask(service, "GET", f"{HOOKS}?limit=2{cursor and '&cursor=' + cursor}")
            listed += page["items"]
            cursor = page["next_cursor"]
        assert shown in listed
        assert {each["url"] for each in listed} == {f"https://a.example/{n}" for n in range(5)}
        assert "secret" not in json.dumps(listed)
        rows = await service.database.fetch("SELECT e::text AS text FROM webhook_endpoints e")
        plain = base64.b64decode(made["secret"].removeprefix("whsec_")).hex()
        assert not any(plain in row["text"] for row in rows)

        for body, pointer in (
            ({"url": "https://10.0.0.1/"}, "/url"),
            ({"url": "https://user@a.example/"}, "/url"),
            ({"url": "https://a.example/" + "a" * 2_048}, "/url"),
            ({"url": "https://b.example", "events": ["order.lost"]}, "/events/0"),
            ({"url": "https://b.example", "events": []}, "/events"),
            ({"url": "https://b.example", "secret": "whsec_short"}, "/secret"),
        ):
            problem = await ask(service, "POST", HOOKS, body, 400)
            assert [fault["pointer"] for fault in problem["errors"]] == [pointer]
        await ask(service, "POST", HOOKS, {"url": "https://a.example/0"}, 409)
        await service.database.execute(
            "INSERT INTO webhook_endpoints (endpoint_id, url, url_hash, events, secret)"
            " SELECT 'WHE-' || n, 'https://b.example/' || n, '', '{}', ''"
            " FROM generate_series(1, $1) AS n",
            ENDPOINTS_MAX - 5,
        )
        problem = await ask(service, "POST", HOOKS, {"url": "https://c.example"}, 409)
        assert str(ENDPOINTS_MAX) in problem["detail"]
        await ask(service, "DELETE", f"{HOOKS}/{made['id']}", status=204)
        await ask(service, "DELETE", f"{HOOKS}/{made['id']}", status=404)
        await ask(service, "GET", f"{HOOKS}/{made['id']}", status=404)
        await ask(service, "POST", HOOKS, {"url": "https://c.example"}, 201)
