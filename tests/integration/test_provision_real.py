"""Provisioning on real parts: safe to repeat, and a changed declaration is applied or refused."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from heart_parts import Topology
from ironcart.cli import provision as command
from ironcart.cli.provision import provision
from ironcart.embedded.nats_server import NatsServer
from ironcart.embedded.ports import free_port
from ironcart.embedded.postgres import Postgres
from ironcart.events import STREAMS
from ironcart.toolkit.broker import Broker, ensure
from ironcart.toolkit.outcomes import InvalidSettings, Refused, Unavailable
from ironcart.toolkit.topology import Stream

SCHEMAS = ("orders", "inventory", "payments", "notifications", "audit", "vault")
BYTES_MAX = 64 * 1024**2
# One table that only this schema has.
OWN_TABLES = {
    "orders": "idempotency_keys",
    "inventory": "reservations",
    "payments": "payments",
    "notifications": "notifications",
    "audit": "links",
    "vault": "keys",
}


@dataclass(frozen=True)
class Shop:
    """Parts that were provisioned once, and what was said."""

    environ: dict[str, str]
    said: list[str]
    database_url: str


def told(broker: NatsServer, database_url: str, **more: str) -> dict[str, str]:
    return {
        "IRONCART_NATS_URL": broker.url,
        "IRONCART_DATABASE_URL": database_url,
        "IRONCART_VAULT_DATABASE_URL": database_url,
        "IRONCART_STREAM_BYTES_MAX": str(BYTES_MAX),
    } | more


@pytest.fixture(scope="module")
def shop(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    port = free_port()
    folder: Path = tmp_path_factory.mktemp("provision")
    server = NatsServer(folder, port=port, monitor_port=free_port(avoid={port}))
    server.start()
    name = f"test_{secrets.token_hex(8)}"
    url, admin = postgres.url_of(name), postgres.url_of("postgres")
    asyncio.run(_execute(admin, f"CREATE DATABASE {name}"))
    environ = told(server, url)
    yield Shop(environ, asyncio.run(provision(environ)), url)
    asyncio.run(_execute(admin, f"DROP DATABASE {name} WITH (FORCE)"))
    server.terminate()


@pytest.fixture
async def client(shop: Shop) -> AsyncIterator[Broker]:
    found = Broker(shop.environ["IRONCART_NATS_URL"], "test")
    await found.connect()
    yield found
    await found.close()


@pytest.fixture
async def other_client(broker_url: str) -> AsyncIterator[Broker]:
    found = Broker(broker_url, "test")
    await found.connect()
    yield found
    await found.close()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def applied(url: str) -> dict[str, list[str]]:
    """The migrations that each schema has had."""
    connection = await asyncpg.connect(url)
    try:
        return {
            schema: [
                row["version"]
                for row in await connection.fetch(
                    f"SELECT version FROM {schema}.schema_migrations ORDER BY 1"
                )
            ]
            for schema in SCHEMAS
        }
    finally:
        await connection.close()


async def config(broker: Broker, what: str) -> dict[str, Any]:
    found: dict[str, Any] = (await broker.api(what))["config"]
    return found


async def test_the_first_run_says_what_it_made_and_the_second_makes_nothing(shop: Shop) -> None:
    for stream in STREAMS:
        assert f"stream {stream.name}: created" in shop.said
    assert "consumer inventory of ORDERS: created" in shop.said
    assert any(line.startswith("orders: Applied") for line in shop.said)

    assert await provision(shop.environ) == []


async def test_every_schema_has_its_own_migrations_and_the_toolkits(shop: Shop) -> None:
    versions = await applied(shop.database_url)
    assert all(found for found in versions.values())
    toolkit = "20261121000100"
    assert all(found[0] == toolkit for found in versions.values())
    connection = await asyncpg.connect(shop.database_url)
    try:
        for schema, table in OWN_TABLES.items():
            rows = await connection.fetch(
                "SELECT table_schema FROM information_schema.tables WHERE table_name = $1", table
            )
            assert [row["table_schema"] for row in rows] == [schema]
        assert not await connection.fetch(
            "SELECT 1 FROM information_schema.tables WHERE table_schema = 'public'"
        )
    finally:
        await connection.close()


async def test_streams_keep_what_they_are_given(client: Broker) -> None:
    for stream in STREAMS:
        found = await config(client, f"STREAM.INFO.{stream.name}")
        assert found["storage"] == "file"
        assert found["discard"] == "new"
        assert found["deny_delete"]
        assert found["deny_purge"]
        assert found["allow_atomic"]
        assert found["max_bytes"] == BYTES_MAX


async def test_what_was_changed_by_hand_is_put_right_and_said(shop: Shop, client: Broker) -> None:
    consumer = await config(client, "CONSUMER.INFO.ORDERS.inventory")
    changed = consumer | {"ack_wait": 5_000_000_000, "filter_subjects": ["orders.created"]}
    await client.api(
        "CONSUMER.CREATE.ORDERS.inventory",
        {"stream_name": "ORDERS", "config": changed, "action": "update"},
    )
    stream = await config(client, "STREAM.INFO.PAYMENTS")
    await client.api("STREAM.UPDATE.PAYMENTS", stream | {"max_bytes": 1_048_576})

    said = await provision(shop.environ)

    assert len(said) == 2
    by_what = dict(sorted(line.split(": ", 1) for line in said))
    assert "ack_wait is 5000000000, declared 30000000000" in by_what["consumer inventory of ORDERS"]
    assert "filter_subjects" in by_what["consumer inventory of ORDERS"]
    assert f"max_bytes is 1048576, declared {BYTES_MAX}" in by_what["stream PAYMENTS"]
    assert await config(client, "CONSUMER.INFO.ORDERS.inventory") == consumer
    assert (await config(client, "STREAM.INFO.PAYMENTS"))["max_bytes"] == BYTES_MAX
    assert await provision(shop.environ) == []


async def test_a_changed_declaration_is_applied(shop: Shop, client: Broker) -> None:
    larger = shop.environ | {"IRONCART_STREAM_BYTES_MAX": str(2 * BYTES_MAX)}
    said = await provision(larger)
    assert len(said) == len(STREAMS)
    assert (await config(client, "STREAM.INFO.ORDERS"))["max_bytes"] == 2 * BYTES_MAX
    await provision(shop.environ)


async def test_provisioning_twice_at_once_is_like_once(
    own_broker: NatsServer, database_url: str
) -> None:
    environ = told(own_broker, database_url)
    one, two = await asyncio.gather(provision(environ), provision(environ))

    assert sorted((bool(one), bool(two))) == [False, True]
    assert set(await applied(database_url)) == set(SCHEMAS)
    assert await provision(environ) == []


@pytest.mark.parametrize(
    "other", [{"storage": "memory"}, {"retention": "workqueue"}], ids=["storage", "retention"]
)
async def test_what_cannot_be_changed_is_refused_and_named(
    other_client: Broker, other: dict[str, str]
) -> None:
    topology = Topology()
    theirs = topology.pings.config(replicas=1, bytes_max=BYTES_MAX) | other
    await other_client.api(f"STREAM.CREATE.{topology.pings.name}", theirs)

    with pytest.raises(Refused) as caught:
        await topology.provision(other_client)

    ((field, value),) = other.items()
    assert f"JetStream refuses stream {topology.pings.name} as declared" in str(caught.value)
    assert f"{field} is '{value}'" in str(caught.value)
    kept = await config(other_client, f"STREAM.INFO.{topology.pings.name}")
    assert kept[field] == value


async def test_subjects_that_another_stream_has_are_refused_and_named(
    other_client: Broker,
) -> None:
    topology = Topology()
    theirs = Stream(f"THEIRS-{topology.tag}", "somebody", topology.pings.subjects)
    await ensure(other_client, [theirs], [], replicas=1, bytes_max=BYTES_MAX)

    with pytest.raises(Refused, match=f"stream {topology.pings.name} .*overlap"):
        await topology.provision(other_client)


async def test_a_consumer_that_cannot_be_changed_is_refused_and_named(
    other_client: Broker,
) -> None:
    topology = Topology()
    await ensure(other_client, [topology.pings], [], replicas=1, bytes_max=BYTES_MAX)
    theirs = topology.beta.config() | {"deliver_policy": "new"}
    await other_client.api(
        f"CONSUMER.CREATE.{topology.pings.name}.beta",
        {"stream_name": topology.pings.name, "config": theirs, "action": "create"},
    )
    with pytest.raises(Refused, match="deliver_policy is 'new', declared 'all'"):
        await topology.provision(other_client)


async def test_an_absent_broker_a_wrong_password_and_missing_settings_are_said(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "BROKER_TIMEOUT_S", 0.5)
    away = f"nats://127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match="IRONCART_NATS_URL"):
        await provision(shop.environ | {"IRONCART_NATS_URL": away})

    password = shop.database_url.split(":")[2].split("@")[0]
    wrong = shop.database_url.replace(password, "wrong")
    with pytest.raises(Refused, match="password authentication failed"):
        await provision(shop.environ | {"IRONCART_DATABASE_URL": wrong})

    with pytest.raises(InvalidSettings) as caught:
        await provision({})
    assert "IRONCART_NATS_URL is not set" in str(caught.value)
    assert "IRONCART_VAULT_DATABASE_URL is not set" in str(caught.value)
