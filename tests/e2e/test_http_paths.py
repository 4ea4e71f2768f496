"""Paths, methods, and what is not HTTP at all: each is answered, and never with a 5xx."""

import json

import pytest

from http_calls import PROBLEM, ROUTES, VITAL_SIGNS, converse, send
from shopping import System


@pytest.mark.parametrize(
    ("service", "path"),
    [
        ("orders", "/orders"),
        ("payments", "/payments"),
        ("inventory", "/stock"),
        ("audit", "/audit"),
    ],
)
@pytest.mark.parametrize("name", ["a" * 65, "a" * 10_000, "%00", "a%0A", "%FF", "a%20b", "%C3%A4"])
async def test_a_path_that_names_what_cannot_be_is_a_400(
    system: System, service: str, path: str, name: str
) -> None:
    assert (await send(system, "GET", f"{path}/{name}", service=service)).status == 400


@pytest.mark.parametrize(
    ("service", "path"),
    [
        *((service, path) for service in ROUTES for path in ("/", "/nope", "/orders/a/b/c")),
        ("orders", "/orders/a%2Fb"),
        ("orders", "/orders/%2E%2E/health"),
        ("orders", "/ORDERS"),
        ("orders", "/orders/ORD-UNKNOWN"),
        ("orders", f"/orders/{'a' * 64}"),
        ("orders", "/orders/ORD-UNKNOWN/events"),
        ("payments", "/payments/ORD-UNKNOWN"),
        ("audit", "/audit/ORD-UNKNOWN"),
    ],
)
async def test_a_path_that_leads_nowhere_is_a_404(system: System, service: str, path: str) -> None:
    assert (await send(system, "GET", path, service=service)).status == 404


async def test_an_unknown_order_cannot_be_cancelled(system: System) -> None:
    assert (await send(system, "POST", "/orders/ORD-UNKNOWN/cancel")).status == 404


@pytest.mark.parametrize("service", ROUTES)
async def test_each_path_names_its_methods_and_refuses_the_others(
    system: System, service: str
) -> None:
    methods: dict[str, set[str]] = {path: {"GET"} for path in VITAL_SIGNS}
    for route in ROUTES[service]:
        method, path = route.split()
        methods.setdefault(path, set()).add(method)
    for path, known in methods.items():
        concrete = path.replace("{", "").replace("}", "")
        allowed = known | {"OPTIONS"} | ({"HEAD"} if "GET" in known else set())
        asked = await send(system, "OPTIONS", concrete, service=service)
        assert (asked.status, asked.body) == (204, b"")
        assert set(asked.headers["Allow"].split(", ")) == allowed
        for method in {"GET", "PUT", "POST", "PATCH", "DELETE", "TRACE"} - known:
            refused = await send(system, method, concrete, service=service)
            assert refused.status == 405, (method, path)
            assert set(refused.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    ("service", "path"),
    [
        *((service, path) for service in ROUTES for path in VITAL_SIGNS),
        ("orders", "/orders?limit=1"),
        ("orders", "/orders/ORD-UNKNOWN"),
        ("orders", "/orders/ORD-UNKNOWN/events"),
        ("inventory", "/stock/SKU-NEVER-SEEN"),
    ],
)
async def test_head_is_get_without_its_body(system: System, service: str, path: str) -> None:
    head = await send(system, "HEAD", path, service=service)
    get = await send(system, "GET", path, service=service)
    assert (head.status, head.kind, head.body) == (get.status, get.kind, b"")


@pytest.mark.parametrize(
    "said",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"BREW /orders HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /orders/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /orders HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    ],
    ids=lambda said: repr(said[:40]),
)
async def test_what_is_not_http_is_told_so_in_a_problem(system: System, said: bytes) -> None:
    head, _, body = (await converse(system, said)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert PROBLEM.encode() in head.lower()
    assert json.loads(body)["status"] == 400
