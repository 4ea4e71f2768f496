"""API keys at a real server: who comes in, how often, and what a changed file changes."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from ironcart.toolkit.http import (
    Endpoint,
    Gate,
    Problem,
    Scope,
    Server,
    application,
    json_response,
    listen,
)
from ironcart.toolkit.http.access import gate as limits
from ironcart.toolkit.http.access.apikeys import Entry, KeyRing, new_key, read_file, written
from ironcart.toolkit.http.access.buckets import Bucket, Buckets
from ironcart.toolkit.http.routes import Answer, Call, json_body
from ironcart.toolkit.outcomes import Refused
from ironcart.toolkit.telemetry import Tracing
from shopping import until

PATIENCE_S = 10.0
JSON = "application/json"
RATED = (
    '{"keys":[{"id":"abcd","name":"a","scope":"operator","rate_per_s":%s,"sha256":"'
    + "0" * 64
    + '"}]}'
)


class Ticket:
    def leave(self) -> None:
        """Nothing is counted."""


class Site:
    """A server with a key file, and what its handlers and its door have seen."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.at_the_door: list[str] = []
        self.read = 0
        self.call: Call | None = None
        self.shop, shop = new_key("shop", Scope.STOREFRONT)
        self.operator, operator = new_key("ops", Scope.OPERATOR)
        self.entries = [shop, operator]
        self.keep()
        self.port = 0

    def keep(self) -> None:
        """Write the file as Kubernetes does: a new one in the place of the old."""
        beside = self.file.with_suffix(".new")
        beside.write_text(written(self.entries))
        beside.replace(self.file)

    def add(self, name: str, **more: Any) -> str:
        key, entry = new_key(name, Scope.STOREFRONT, **more)
        self.entries.append(entry)
        self.keep()
        return key

    async def post(self, request: Call) -> Answer:
        body = await json_body(request)
        self.read += 1
        return json_response(body)

    async def whoami(self, request: Call) -> Answer:
        self.call = request
        return json_response({"id": request.caller.id})

    def door(self, caller: str) -> Ticket:
        self.at_the_door.append(caller)
        return Ticket()

    def endpoints(self) -> list[Endpoint]:
        shop = Scope.STOREFRONT
        return [
            Endpoint("GET", "/open", self.whoami, allows=None),
            Endpoint("GET", "/whoami", self.whoami, allows=shop),
            Endpoint("GET", "/whoami/{name}", self.whoami, allows=shop),
            Endpoint("POST", "/things", self.post, door=self.door, allows=shop),
            Endpoint("POST", "/secrets", self.post, door=self.door),
            Endpoint("POST", "/secrets/{name}", self.post),
        ]

    async def ask(
        self, method: str, path: str, key: str | None = None, **headers: str
    ) -> tuple[int, Any, Mapping[str, str]]:
        """One request, with a body that is JSON; its status, its answer and its headers."""
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        url = f"http://127.0.0.1:{self.port}{path}"
        headers.setdefault("Content-Type", JSON)
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, data=b"{}", headers=headers) as answer,
        ):
            return answer.status, await answer.json(content_type=None), answer.headers

    async def until(self, status: int, key: str) -> None:
        """Wait until a key is answered so."""

        async def is_so() -> bool:
            return (await self.ask("GET", "/whoami", key))[0] == status

        await until(is_so, PATIENCE_S)


@asynccontextmanager
async def serving(site: Site, rate_per_s: float = 1_000) -> AsyncIterator[Gate]:
    gate = Gate.built(str(site.file), "", "", "", rate_per_s=rate_per_s)
    app = application("test", "0", site.endpoints(), Tracing("test", {}), gate)
    taken = listen("127.0.0.1", 0)
    site.port = taken.getsockname()[1]
    server = Server(app, taken, 1.0)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.run_until_finished())
        watching = group.create_task(gate.watch())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield gate
        watching.cancel()
        await server.finish()


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(limits, "LOOK_EVERY_S", 0.02)
    found = Site(tmp_path / "keys.json")
    async with serving(found):
        yield found


async def test_who_has_no_key_is_told_so_and_nothing_is_read_or_asked(site: Site) -> None:
    for path in ("/whoami", "/whoami/x", "/things", "/secrets/x", "/nowhere", "/open/", "/%6fpen"):
        for headers in ({}, {"Authorization": "Basic abc"}, {"Authorization": "Bearer "}):
            status, problem, said = await site.ask("POST", path, **headers)
            assert (status, problem["status"]) == (401, 401), path
            assert said["WWW-Authenticate"] == 'Bearer realm="ironcart"'
    assert not site.read
    assert not site.at_the_door
    assert (await site.ask("GET", "/open"))[0] == 200


async def test_a_wrong_key_is_refused_whatever_of_it_is_right(site: Site) -> None:
    prefix, key_id, secret = site.shop.split("_", 2)
    for wrong in (
        "nonsense",
        "ick_",
        f"{prefix}_{key_id}_",
        f"{prefix}_{key_id}_{secret}x",
        f"{prefix}_{key_id}_{secret[:-1]}",
        f"{prefix}_{site.operator.split('_')[1]}_{secret}",
        site.entries[0].sha256,
    ):
        status, problem, said = await site.ask("GET", "/whoami", wrong)
        assert status == 401, wrong
        assert 'error="invalid_token"' in said["WWW-Authenticate"]
        assert wrong not in str(problem)


async def test_a_scope_that_is_not_enough_is_403_before_the_body_is_read(site: Site) -> None:
    for path in ("/secrets", "/secrets/x"):
        status, _, said = await site.ask("POST", path, site.shop)
        assert status == 403
        assert said["WWW-Authenticate"].endswith('scope="operator"')
        assert (await site.ask("POST", path, site.operator))[0] in (200, 201)
    assert site.read == 2
    assert site.at_the_door == ["key:ops"]


async def test_two_authorization_headers_are_one_too_many(site: Site) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    line = f"Authorization: Bearer {site.operator}\r\n".encode()
    writer.write(b"GET /whoami HTTP/1.1\r\nHost: x\r\n" + line + line + b"\r\n")
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b'error="invalid_request"' in head


async def test_a_body_is_not_asked_for_from_who_has_no_key(site: Site) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(
        b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 401 ")


async def test_what_is_left_of_a_callers_rate_is_said_and_beyond_it_is_429(site: Site) -> None:
    key = site.add("slow", rate_per_s=0.01, burst=2)
    await site.until(200, key)

    status, _, said = await site.ask("GET", "/whoami/x", key)
    assert (status, said["RateLimit-Policy"]) == (200, '"caller";q=2;w=200')
    assert said["RateLimit"].startswith('"caller";r=0;t=')
    status, problem, said = await site.ask("GET", "/whoami", key)
    assert (status, problem["status"]) == (429, 429)
    assert said["Retry-After"] == "30"
    assert said["RateLimit"].startswith('"caller";r=0;t=')
    assert (await site.ask("GET", "/whoami", site.shop))[0] == 200


async def test_a_key_is_known_expires_and_is_revoked_while_the_service_runs(site: Site) -> None:
    key = site.add("guest")
    await site.until(200, key)
    assert site.call is not None
    call = site.call
    assert call.still_allowed()
    site.entries.pop()
    site.keep()
    await site.until(401, key)
    assert not call.still_allowed()

    soon = site.add("guest", expires_at=datetime.now(UTC) + timedelta(seconds=1.5))
    await site.until(200, soon)
    await site.until(401, soon)
    assert "has expired" in (await site.ask("GET", "/whoami", soon))[1]["detail"]


async def has_grown(logs: Sequence[Any], before: int) -> bool:
    return len(logs) > before


async def test_a_file_that_is_damaged_or_gone_later_changes_nothing_and_is_logged(
    site: Site,
) -> None:
    with capture_logs() as logs:
        for damage in (lambda: site.file.write_text("{"), site.file.unlink):
            seen = len(logs)
            damage()
            await until(partial(has_grown, logs, seen), PATIENCE_S)
            assert (await site.ask("GET", "/whoami", site.shop))[0] == 200
    assert [each["log_level"] for each in logs] == ["error", "error"]
    assert site.shop.split("_", 2)[2] not in str(logs)
    key = site.add("later")
    await site.until(200, key)


async def test_keys_of_one_name_are_one_caller(site: Site) -> None:
    other = site.add("shop")
    await site.until(200, other)
    for key in (site.shop, other):
        assert (await site.ask("GET", "/whoami", key))[1] == {"id": "key:shop"}


async def test_who_fails_too_often_waits_and_holds_up_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FAILURES_BURST", 3)
    monkeypatch.setattr(limits, "FAILURES_PER_S", 0.01)
    site = Site(tmp_path / "keys.json")
    async with serving(site):
        found = [(await site.ask("GET", "/whoami", "wrong"))[0] for _ in range(5)]
        assert found == [401, 401, 401, 429, 429]
        assert (await site.ask("GET", "/whoami", site.shop))[0] == 200


async def test_no_key_gets_into_the_metrics(site: Site) -> None:
    await site.ask("GET", "/whoami", site.shop)
    await site.ask("GET", "/whoami", site.shop + "x")

    assert site.shop.split("_", 2)[2].encode() not in generate_latest()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a file of keys"),
        ("[]", "not a file of keys"),
        ('{"keys":[{"id":"abcd","name":"a b","scope":"operator","sha256":""}]}', "keys"),
        ('{"keys":[{"id":"abcd","name":"a","scope":"root","sha256":"' + "0" * 64 + '"}]}', "root"),
        ('{"keys":[],"more":1}', "more"),
        (RATED % "1e-308", ">= 0.001"),
        (RATED % "1000001", "<= 1000000"),
    ],
)
def test_a_damaged_file_at_the_start_is_an_error_that_says_what_to_change(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "keys.json"
    file.write_text(text)
    with pytest.raises(Refused, match=said):
        KeyRing(file, 1.0)
    with pytest.raises(Refused, match="make it readable"):
        KeyRing(tmp_path / "none.json", 1.0)


def test_an_id_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    _, entry = new_key("shop", Scope.STOREFRONT)
    (tmp_path / "keys.json").write_text(written([entry, entry]))
    with pytest.raises(Refused, match="twice"):
        read_file(tmp_path / "keys.json")


def test_a_file_holds_no_key_and_is_read_as_it_was_written(tmp_path: Path) -> None:
    end = datetime(2030, 1, 1, tzinfo=UTC)
    key, entry = new_key("shop", Scope.STOREFRONT, rate_per_s=5, burst=7, expires_at=end)
    text = written([entry])
    (tmp_path / "keys.json").write_text(text)

    assert key.split("_", 2)[2] not in text
    assert len(key.split("_", 2)[2]) * 6 >= 256
    assert read_file(tmp_path / "keys.json").keys == (entry,)
    assert isinstance(entry, Entry)


def test_a_key_keeps_its_bucket_when_the_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key, entry = new_key("shop", Scope.STOREFRONT)
    file.write_text(written([entry]))
    ring = KeyRing(file, 1.0)
    before = ring.find(key.encode())
    _, other = new_key("other", Scope.STOREFRONT)
    file.write_text(written([entry, other]))
    os.utime(file, ns=(1, 1))

    ring.look()

    after = ring.find(key.encode())
    assert before is not None
    assert after is not None
    assert after.bucket is before.bucket


def test_a_bucket_gives_its_burst_at_once_and_its_rate_for_ever() -> None:
    bucket = Bucket(2.0, 3)
    assert [bucket.take(10.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert bucket.take(10.5) == 0
    assert bucket.take(10.5) == pytest.approx(0.5)
    assert [bucket.take(1_000.0) for _ in range(4)] == [0, 0, 0, 0.5]


def test_buckets_are_bounded_and_the_oldest_goes() -> None:
    buckets = Buckets(1.0, 1, 2)
    first = buckets.of("first")
    buckets.of("second")
    assert buckets.of("first") is first
    buckets.of("third")
    assert buckets.of("first") is first
    assert isinstance(buckets.of("second"), Bucket)


def test_one_network_of_ipv6_counts_as_one_address() -> None:
    gate = Gate(None, rate_per_s=1)
    found = [gate.judge([], f"2001:db8::{n:x}") for n in range(limits.FAILURES_BURST + 1)]
    statuses = [each.status for each in found if isinstance(each, Problem)]
    assert statuses == [401] * limits.FAILURES_BURST + [429]
    other = gate.judge([], "2001:db8:0:1::1")
    assert isinstance(other, Problem)
    assert other.status == 401


def test_an_ipv4_address_counts_alone_also_where_it_is_written_as_ipv6() -> None:
    gate = Gate(None, rate_per_s=1)
    found = [gate.judge([], "::ffff:203.0.113.7") for _ in range(limits.FAILURES_BURST)]
    others = [gate.judge([], f"::ffff:198.51.100.{n}") for n in range(9)]
    found += [gate.judge([], "203.0.113.7")]
    statuses = [each.status for each in (*others, *found) if isinstance(each, Problem)]
    assert statuses == [401] * (9 + limits.FAILURES_BURST) + [429]
