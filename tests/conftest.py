"""Real parts for every test that asks for them; nothing is started for those that do not."""

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from ironcart.embedded.nats_server import NatsServer
from ironcart.embedded.placement import forget
from ironcart.embedded.ports import free_port
from ironcart.embedded.postgres import Postgres

# For `make fuzz`, by --hypothesis-profile.
settings.register_profile(
    "fuzz", max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """A folder that Postgres's user reaches, which a session's own folder is not, as root."""
    folder = Path(tempfile.mkdtemp(prefix="ironcart-tests-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    forget(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def broker(servers_folder: Path) -> Iterator[NatsServer]:
    """The session's broker; a test that stops a broker takes `own_broker`."""
    server = _broker(servers_folder / "nats")
    server.start()
    yield server
    server.terminate()


@pytest.fixture(scope="session")
def broker_url(broker: NatsServer) -> str:
    """The address of a real nats-server with JetStream."""
    return broker.url


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[NatsServer]:
    """A running broker for this test alone, to be stopped, killed and started again."""
    server = _broker(tmp_path / "nats")
    server.start()
    yield server
    server.terminate()


@pytest.fixture(scope="session")
def postgres(servers_folder: Path) -> Iterator[Postgres]:
    """The session's database server; a test that stops one takes `own_postgres`."""
    server = Postgres(servers_folder, port=free_port())
    server.start()
    yield server
    server.terminate()


@pytest.fixture(scope="session")
def postgres_url(postgres: Postgres) -> str:
    """The address of a real Postgres, as its superuser."""
    return postgres.url_of("postgres")


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A running database server for this test alone, to be stopped, killed and started again."""
    folder = Path(tempfile.mkdtemp(prefix="ironcart-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    server = Postgres(folder, port=free_port())
    server.start()
    yield server
    server.terminate()
    forget(folder)
    shutil.rmtree(folder)


@pytest.fixture
async def database_url(postgres: Postgres, postgres_url: str) -> AsyncIterator[str]:
    """The address of a fresh, empty database, dropped after the test."""
    name = f"test_{secrets.token_hex(8)}"
    await _execute(postgres_url, f"CREATE DATABASE {name}")
    yield postgres.url_of(name)
    await _execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def _broker(folder: Path) -> NatsServer:
    port = free_port()
    return NatsServer(folder, port=port, monitor_port=free_port(avoid={port}))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
