"""Each service does what its own OpenAPI document says, whatever a stranger sends it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema_rs
import pytest
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from exploring import ENDS_WITHIN_S, explore
from http_calls import ROUTES
from ironcart.events import CURRENCIES
from shopping import READY_WITHIN_S, Shop, System, order

# The first of them waits for the system too.
LIMIT_S = READY_WITHIN_S + ENDS_WITHIN_S
each_service = pytest.mark.parametrize("service", ROUTES)


@pytest.mark.timeout(LIMIT_S)
@each_service
def test_whatever_a_stranger_sends_is_answered_as_documented(
    system: System, service: str, tmp_path: Path
) -> None:
    explore(system, service, tmp_path)


@pytest.fixture(scope="module", autouse=True)
def no_endpoints_left(system: System) -> Iterator[None]:
    """Webhooks to what a stranger made up would be tried for a day."""
    yield

    async def clear() -> None:
        async with aiohttp.ClientSession(system.url("notifications")) as session:
            async with session.get("/webhook-endpoints?limit=500") as answer:
                items = (await answer.json())["items"]
            for item in items:
                async with session.delete(f"/webhook-endpoints/{item['id']}") as answer:
                    assert answer.status == 204

    asyncio.run(clear())


@each_service
async def test_the_document_is_valid_openapi_3_1_and_has_every_route(
    shop: Shop, service: str
) -> None:
    document = await shop.get(service, "/openapi.json")
    assert document["openapi"].startswith("3.1")
    OPENAPI_31_VALIDATOR.validate(document)
    found = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert found == ROUTES[service]


@each_service
async def test_every_schema_of_the_document_is_one_that_other_languages_read(
    shop: Shop, service: str
) -> None:
    document = await shop.get(service, "/openapi.json")
    for name, schema in document["components"]["schemas"].items():
        jsonschema_rs.meta.validate(schema)
        whole = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema_rs.Draft202012Validator(whole, validate_formats=True)
    assert not [pattern for pattern in _patterns(document) if r"\Z" in pattern]


def _patterns(node: Any) -> list[str]:
    if isinstance(node, dict):
        here = [node["pattern"]] if isinstance(node.get("pattern"), str) else []
        return here + [found for value in node.values() for found in _patterns(value)]
    if isinstance(node, list):
        return [found for value in node for found in _patterns(value)]
    return []


async def test_money_is_documented_as_a_number(shop: Shop) -> None:
    orders = (await shop.get("orders", "/openapi.json"))["components"]["schemas"]
    payments = (await shop.get("payments", "/openapi.json"))["components"]["schemas"]
    assert orders["PostOrder"]["properties"]["amount"]["type"] == "number"
    assert orders["PostItem"]["properties"]["unit_price"]["type"] == "number"
    assert orders["OrderView"]["properties"]["amount"]["type"] == "number"
    kinds = payments["PaymentView"]["properties"]["amount"]["anyOf"]
    assert {kind["type"] for kind in kinds} == {"number", "null"}
    assert "'format': 'decimal'" not in str(orders) + str(payments)


async def test_the_schema_of_an_order_is_as_strict_as_its_reader(shop: Shop) -> None:
    document = await shop.get("orders", "/openapi.json")
    whole = {"$ref": "#/components/schemas/PostOrder", "components": document["components"]}
    schema = jsonschema_rs.Draft202012Validator(whole)
    line: dict[str, Any] = {"sku": "SKU-1", "quantity": 1, "unit_price": 1}
    bad: list[dict[str, Any]] = [
        {"currency": "NOK"},
        {"currency": ""},
        {"customer_id": "C-1\n"},
        {"customer_id": "C" * 65},
        {"email": "nobody"},
        {"email": "a@b..example"},
        {"name": ""},
        {"name": "a\tb"},
        {"payment_method": "pm card"},
        {"amount": 0},
        {"amount": "19.99"},
        {"unknown": 1},
        {"items": []},
        {"items": [line] * 101},
        {"items": [{**line, "quantity": 0}]},
        {"items": [{**line, "quantity": 1_000_001}]},
        {"items": [{**line, "quantity": 1.5}]},
        {"items": [{**line, "unit_price": -1}]},
        {"items": [{**line, "unit_price": 100_000_000}]},
        {"items": [{**line, "unknown": 1}]},
        {"items": [{"sku": "SKU-1"}]},
    ]
    for change in bad:
        body = order("SKU-1", 1, **change)
        assert not schema.is_valid(body), change
        status, problem = await shop.ask("POST", "orders", "/orders", body)
        assert (status, problem["status"]) == (400, 400), change
        assert problem["errors"], change
    for currency in CURRENCIES:
        assert schema.is_valid(order("SKU-1", 1, currency=currency))


@each_service
async def test_every_service_tells_how_it_is(system: System, service: str) -> None:
    async with aiohttp.ClientSession(system.url(service)) as session:
        for path, said in (("/health", "alive"), ("/ready", "ready")):
            async with session.get(path) as answer:
                assert (answer.status, answer.content_type) == (200, "application/json")
                assert (await answer.json())["status"] == said
        async with session.get("/metrics") as answer:
            assert (answer.status, answer.content_type) == (200, "text/plain")
            families = {each.name for each in text_string_to_metric_families(await answer.text())}
        async with session.get("/metrics?name[]=ironcart_http_request_seconds_count") as answer:
            asked = {each.name for each in text_string_to_metric_families(await answer.text())}
    assert asked == {"ironcart_http_request_seconds"}
    assert {"ironcart_http_request_seconds", "ironcart_consumer_lag_messages"} <= families, sorted(
        families
    )
