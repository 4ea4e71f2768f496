"""A system that asks for keys: every route for every kind of caller, and whose orders are whose."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from exploring import CHECKS, ENDS_WITHIN_S, explore
from http_calls import ROUTES, VITAL_SIGNS
from ironcart.embedded.folder import write_file
from ironcart.services.orders.api.following import FOLLOWERS_MAX, FOLLOWERS_SHARE
from ironcart.toolkit.http import Scope
from ironcart.toolkit.http.access.apikeys import new_key as draw
from ironcart.toolkit.http.access.apikeys import read_file, written
from shopping import ENDED, SOON_S, Shop, System, order, running_system, until

# What a key changes is seen at the first of them.
EXAMPLES_MAX = 2
REVOKED_WITHIN_S = 10.0
KINDS = ("no key", "garbage", "another storefront", "its storefront", "operator")
# What each kind of caller is answered: all of ours is open, shut, its own only, or an operator's.
SHUT = (401, 401)
FOR_ALL = {
    "POST /orders": 202,
    "GET /orders": 200,
    "GET /stock": 200,
    "GET /stock/{sku}": 200,
    "GET /openapi.json": 200,
}
FOR_ITS_OWN = {
    "GET /orders/{order_id}": 200,
    "POST /orders/{order_id}/cancel": 409,
    "GET /orders/{order_id}/events": 200,
}
FOR_OPERATORS = {
    "PUT /stock/{sku}": 200,
    "POST /stock/{sku}/adjustments": 200,
    "GET /payments/{order_id}": 200,
    "POST /payments/{order_id}/refunds": 202,
    "GET /notifications": 200,
    "POST /webhook-endpoints": 400,
    "GET /webhook-endpoints": 200,
    "GET /webhook-endpoints/{endpoint_id}": 404,
    "DELETE /webhook-endpoints/{endpoint_id}": 404,
    "GET /audit/{aggregate_id}": 200,
    "GET /audit/verify": 200,
    "GET /audit/checkpoints": 200,
}
FOR_ANYBODY = {"POST /webhooks/stripe": 400, **{f"GET {path}": 200 for path in VITAL_SIGNS[:3]}}
EXPECTED = {
    **{route: (*SHUT, found, found, found) for route, found in FOR_ALL.items()},
    **{route: (*SHUT, 404, found, found) for route, found in FOR_ITS_OWN.items()},
    **{route: (*SHUT, 403, 403, found) for route, found in FOR_OPERATORS.items()},
    **{route: (found,) * len(KINDS) for route, found in FOR_ANYBODY.items()},
}
BODIES = {
    "POST /orders": order("SKU-guarded"),
    "PUT /stock/{sku}": {"on_hand": 1_000},
    "POST /stock/{sku}/adjustments": {"delta": 1},
    "POST /payments/{order_id}/refunds": {"amount": 1.00},
    "POST /webhook-endpoints": {"url": "no address"},
    "POST /webhooks/stripe": {},
}


@dataclass
class Guarded:
    """The system, and keys that tests made with the command line."""

    shop: Shop
    mine: str
    others: str
    operator: str

    async def ask(
        self, method: str, service: str, path: str, key: str, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        return await self.shop.ask(
            method, service, path, body, Authorization=f"Bearer {key}", **headers
        )

    async def status(self, route: str, path: str, key: str | None, service: str) -> int:
        """The status alone, of a route with its body: what it answers may be a stream."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        method = route.split(maxsplit=1)[0]
        body = BODIES.get(route)
        url = self.shop.system.url(service) + path
        session = self.shop._session
        async with session.request(method, url, json=body, headers=headers) as answer:
            return answer.status

    async def place(self, key: str, sku: str, **headers: str) -> str:
        status, body = await self.ask("POST", "orders", "/orders", key, order(sku), **headers)
        assert status == 202, body
        order_id: str = body["order_id"]
        return order_id

    async def ended(self, order_id: str) -> Any:
        async def has_ended() -> bool:
            return (await self.order(order_id))["status"] in ENDED

        await until(has_ended)
        return await self.order(order_id)

    async def audited(self, order_id: str, kind: str) -> Any:
        """The data of an order's event of this type, once the trail has it."""
        found: list[Any] = []

        async def has_come() -> bool:
            path = f"/audit/{order_id}"
            status, body = await self.ask("GET", "audit", path, self.operator)
            items = body["items"] if status == 200 else []
            found[:] = [item["event"]["data"] for item in items if item["type"] == kind]
            return bool(found)

        await until(has_come)
        (data,) = found
        return data

    async def order(self, order_id: str) -> Any:
        status, body = await self.ask("GET", "orders", f"/orders/{order_id}", self.operator)
        assert status == 200, body
        return body

    async def stocked(self) -> str:
        sku = "SKU-guarded"
        path = f"/stock/{sku}"
        status, body = await self.ask("PUT", "inventory", path, self.operator, {"on_hand": 1_000})
        assert status == 200, body
        return sku

    async def until_known(self, key: str, status: int = 200) -> None:
        async def is_so() -> bool:
            return (await self.ask("GET", "orders", "/orders?limit=1", key))[0] == status

        await until(is_so, REVOKED_WITHIN_S)


def apikey(system: System, *arguments: str) -> str:
    """Make or revoke a key of the system, as a person would."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ironcart.cli", "apikey", *arguments),
            *("--file", str(system.folder / "api-keys.json")),
        ],
        capture_output=True,
        text=True,
        timeout=SOON_S,
        check=True,
    )
    return done.stdout.strip()


def new_key(system: System, name: str, **limits: Any) -> str:
    """The same, without a process of its own."""
    file = system.folder / "api-keys.json"
    key, entry = draw(name, Scope.STOREFRONT, **limits)
    write_file(file, written([*read_file(file).keys, entry]))
    return key


@pytest.fixture(scope="module")
def guarded() -> Iterator[System]:
    """A system that asks for keys."""
    with running_system("guarded", "--auth") as found:
        yield found


@pytest.fixture(scope="module")
def keys(guarded: System) -> tuple[str, str]:
    made = ("--scope", "storefront")
    return apikey(guarded, "new", "--name", "mine", *made), new_key(guarded, "others")


@pytest.fixture
async def site(guarded: System, keys: tuple[str, str]) -> AsyncIterator[Guarded]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=40)) as session:
        shop = Shop(guarded, session)
        found = Guarded(shop, *keys, guarded.run["api_keys"]["operator"])
        for key in keys:
            await found.until_known(key)
        yield found
        await shop.heal()


@pytest.mark.parametrize("service", ROUTES)
async def test_every_route_answers_every_kind_of_caller_as_the_table_says(
    site: Guarded, service: str
) -> None:
    order_id = await site.place(site.mine, await site.stocked())
    await site.ended(order_id)
    names = {"order_id": order_id, "sku": "SKU-guarded", "endpoint_id": "WHE-0"}
    names["aggregate_id"] = order_id
    routes = [*ROUTES[service], *(f"GET {path}" for path in VITAL_SIGNS)]
    found = {}
    for route in routes:
        path = route.split()[1].format(**names)
        callers = (None, "ick_0_0", site.others, site.mine, site.operator)
        found[route] = tuple([await site.status(route, path, key, service) for key in callers])

    assert found == {route: EXPECTED[route] for route in routes}


@pytest.mark.parametrize("service", ROUTES)
async def test_the_document_says_which_scope_each_route_needs(site: Guarded, service: str) -> None:
    status, document = await site.ask("GET", service, "/openapi.json", site.mine)
    assert status == 200
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            expected = EXPECTED[f"{method.upper()} {path}"]
            scopes = [each["bearer"] for each in operation["security"]]
            operator = [["operator"]]
            both = [["operator"], ["storefront"]]
            open_to_all = expected[0] != 401
            assert scopes == ([] if open_to_all else operator if expected[3] == 403 else both)
            said = {"401", "403", "429"} & operation["responses"].keys()
            assert said == (set() if open_to_all else {"401", "403", "429"})


async def test_a_storefront_lists_and_finds_its_own_orders_and_no_others(site: Guarded) -> None:
    sku = await site.stocked()
    mine, others = await site.place(site.mine, sku), await site.place(site.others, sku)
    for query in ("", "&customer_id=C-1"):
        _, page = await site.ask("GET", "orders", f"/orders?limit=500{query}", site.others)
        listed = {item["order_id"] for item in page["items"]}
        assert others in listed
        assert mine not in listed
        _, page = await site.ask("GET", "orders", f"/orders?limit=500{query}", site.operator)
        assert {mine, others} <= {item["order_id"] for item in page["items"]}
    unknown = mine[:-1] + ("0" if mine[-1] != "0" else "1")
    for method, end in (("GET", ""), ("POST", "/cancel"), ("GET", "/events")):
        answers = []
        for order_id in (mine, unknown):
            path = f"/orders/{order_id}{end}"
            status, problem = await site.ask(method, "orders", path, site.others)
            answers.append((status, str(problem).replace(order_id, "…")))
        assert answers[0] == answers[1]
        assert answers[0][0] == 404


async def test_an_idempotency_key_belongs_to_its_caller(site: Guarded) -> None:
    sku = await site.stocked()
    mine = await site.place(site.mine, sku, Idempotency_Key="the-same")
    others = await site.place(site.others, sku, Idempotency_Key="the-same")

    assert mine != others
    assert await site.place(site.mine, sku, Idempotency_Key="the-same") == mine


async def test_a_key_that_replaces_another_sees_what_that_one_placed(
    site: Guarded, guarded: System
) -> None:
    old = new_key(guarded, "rotating")
    await site.until_known(old)
    order_id = await site.place(old, await site.stocked())
    new = new_key(guarded, "rotating")
    await site.until_known(new)
    apikey(guarded, "revoke", old.split("_")[1])
    await site.until_known(old, 401)

    status, _ = await site.ask("GET", "orders", f"/orders/{order_id}", new)

    assert status == 200
    assert (await site.audited(order_id, "OrderCreated"))["placed_by"] == "key:rotating"


async def test_a_key_that_asks_for_too_much_is_429_with_what_is_left(
    site: Guarded, guarded: System
) -> None:
    key = new_key(guarded, "slow", rate_per_s=0.01, burst=2)
    await site.until_known(key)
    url = f"{guarded.url('orders')}/orders?limit=1"
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.get(url) as last:
            assert (last.status, last.headers["RateLimit"][:12]) == (200, '"caller";r=0')
        async with session.get(url) as refused:
            assert (refused.status, refused.content_type) == (429, "application/problem+json")
            assert int(refused.headers["Retry-After"]) >= 1


async def test_an_order_followed_with_a_key_that_is_revoked_is_followed_no_more(
    site: Guarded, guarded: System
) -> None:
    key = new_key(guarded, "follower")
    await site.until_known(key)
    await site.shop.fault(mode="slow", delay_s=6, seconds=10)
    order_id = await site.place(key, await site.stocked())
    url = f"{guarded.url('orders')}/orders/{order_id}/events"
    headers = {"Authorization": f"Bearer {key}"}
    async with site.shop._session.get(url, headers=headers) as stream:
        assert stream.status == 200
        file = guarded.folder / "api-keys.json"
        write_file(file, written(read_file(file).keys[:-1]))
        async with asyncio.timeout(REVOKED_WITHIN_S):
            heard = await stream.read()

    assert b"OrderCreated" in heard
    assert b"OrderConfirmed" not in heard


async def test_one_storefront_takes_a_quarter_of_the_followers_places_at_most(
    site: Guarded, guarded: System
) -> None:
    key = new_key(guarded, "greedy", rate_per_s=1_000)
    await site.until_known(key)
    await site.shop.fault(mode="slow", delay_s=8, seconds=10)
    sku = await site.stocked()
    mine, others = await site.place(key, sku), await site.place(site.others, sku)

    async def follow(order_id: str, key: str) -> int:
        url = f"{guarded.url('orders')}/orders/{order_id}/events"
        answer = session.get(url, headers={"Authorization": f"Bearer {key}"})
        return (await streams.enter_async_context(answer)).status

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, AsyncExitStack() as streams:
        found = [await follow(mine, key) for _ in range(int(FOLLOWERS_MAX * FOLLOWERS_SHARE))]
        assert set(found) == {200}
        assert await follow(mine, key) == 429
        assert await follow(others, site.others) == 200
        assert await follow(mine, site.operator) == 200


async def test_who_cancels_is_told_and_an_operator_may_cancel_anybodys(site: Guarded) -> None:
    await site.shop.fault(mode="slow", delay_s=3, seconds=10)
    sku = await site.stocked()
    mine, others = await site.place(site.mine, sku), await site.place(site.others, sku)
    for order_id, key in ((mine, site.mine), (others, site.operator)):
        status, body = await site.ask("POST", "orders", f"/orders/{order_id}/cancel", key)
        assert status == 202, body
    assert (await site.ended(mine))["reason"] == "customer"
    assert (await site.ended(others))["reason"] == "operator"
    asked = await site.audited(others, "OrderCancellationRequested")
    assert asked["requested_by"] == "key:up-operator"


@pytest.mark.timeout(ENDS_WITHIN_S)
@pytest.mark.parametrize("service", ["orders", "payments"])
def test_a_key_does_what_is_documented_and_without_it_nothing_is_done(
    guarded: System, service: str, tmp_path: Path
) -> None:
    options = {
        "--header": f"Authorization: Bearer {guarded.run['api_keys']['operator']}",
        "--checks": ",".join((*CHECKS, "ignored_auth")),
        "--max-examples": EXAMPLES_MAX,
        "--phases": "fuzzing",
    }
    explore(guarded, service, tmp_path, **options)


def test_load_runs_with_the_keys_of_the_folder_and_every_promise_holds(guarded: System) -> None:
    done = guarded.cli("load", "--orders", "20", "--quiet", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    guarded.verify()
    rebuilt = guarded.cli("rebuild", "orders")
    assert rebuilt.returncode == 0, rebuilt.stdout


def test_no_key_is_in_a_log(guarded: System, keys: tuple[str, str]) -> None:
    secrets = [each.split("_", 2)[2] for each in (*keys, *guarded.run["api_keys"].values())]
    for log in (guarded.folder / "logs").iterdir():
        text = log.read_text(errors="replace")
        assert not [secret for secret in secrets if secret in text], log
