"""What waiting will not mend ends a service at once, with one line that says what to change."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import heart_doomed
from heart_parts import Topology, bench, make_schema
from heart_processes import LaxBroker, environment, lax_broker, process
from ironcart.embedded.nats_server import NatsServer
from ironcart.embedded.postgres import Postgres

DOOMED = (sys.executable, heart_doomed.__file__)
# Two on a quiet machine.
ENDED_WITHIN_S = 120


@dataclass(frozen=True)
class Ended:
    """How a process ended, and everything it said."""

    code: int
    lines: list[dict[str, Any]]

    def complaint(self) -> str:
        """The one error; nothing else was said but what led to it."""
        assert self.code == 1, self.lines
        (error,) = [line for line in self.lines if line["level"] == "error"]
        assert error["msg"] == "Cannot run"
        assert "\n" not in error["error"]
        return str(error["error"])


@pytest.fixture(scope="module")
def lax(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaxBroker]:
    with lax_broker(tmp_path_factory.mktemp("lax")) as found:
        yield found


@pytest.fixture(scope="module")
def doomed(
    broker: NatsServer,
    postgres: Postgres,
    lax: LaxBroker,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Ended]:
    """Every process that cannot run, all at once."""
    folder = tmp_path_factory.mktemp("doomed")
    url = postgres.url_of("postgres")
    password = url.split(":")[2].split("@")[0]
    taken = socket.create_server(("127.0.0.1", 0))
    lax_urls = {"NATS_URL": lax.url(), "NATS_MONITOR_URL": lax.monitor_url}
    changes = {
        "password": {"DATABASE_URL": url.replace(password, "wrong")},
        "no database": {"DATABASE_URL": postgres.url_of("nowhere")},
        "credentials": lax_urls | {"NATS_URL": lax.url("wrong")},
        "unsafe": lax_urls,
        "faults": {"NATS_URL": "", "PORT": "70000", "LOG_LEVEL": "loud", "PATIENCE_S": "much"},
        "auth": {"AUTH": "on"},
        "host": {"HOST": "0.0.0.0"},
        "port": {"PORT": str(taken.getsockname()[1])},
        "nats url": {"NATS_URL": "nats://me:p/secret@127.0.0.1:1"},
        "database url": {"DATABASE_URL": "postgresql://me:p/secret@127.0.0.1:1/x"},
    }
    asyncio.run(make_schema(url, "beta"))
    told = {name: environment(broker, url, **change) for name, change in changes.items()}
    with taken:
        done = subprocess.run(
            (*DOOMED, str(folder), Topology().tag, str(ENDED_WITHIN_S)),
            input=json.dumps(told),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    codes: dict[str, int] = json.loads(done.stdout)
    return {
        name: Ended(code, [json.loads(line) for line in (folder / name).read_text().splitlines()])
        for name, code in codes.items()
    }


def test_a_wrong_database_password_is_said(doomed: dict[str, Ended]) -> None:
    assert "the database refuses us: password authentication failed" in (
        doomed["password"].complaint()
    )


def test_a_database_that_does_not_exist_is_said(doomed: dict[str, Ended]) -> None:
    assert 'database "nowhere" does not exist' in doomed["no database"].complaint()


def test_credentials_that_the_broker_refuses_are_said(doomed: dict[str, Ended]) -> None:
    assert doomed["credentials"].complaint() == (
        "the broker refuses the credentials in IRONCART_NATS_URL"
    )


def test_a_broker_address_that_is_none_is_said(doomed: dict[str, Ended]) -> None:
    assert "IRONCART_NATS_URL is wrong: use nats://" in doomed["nats url"].complaint()


def test_a_database_address_that_is_none_is_said(doomed: dict[str, Ended]) -> None:
    complaint = doomed["database url"].complaint()
    assert "IRONCART_DATABASE_URL is wrong: use postgresql://" in complaint


def test_a_broker_that_does_not_sync_is_refused(doomed: dict[str, Ended]) -> None:
    complaint = doomed["unsafe"].complaint()
    assert "set `sync_interval: always`" in complaint
    assert "--allow-unsafe-broker" in complaint


def test_all_faults_of_the_settings_are_said_together(doomed: dict[str, Ended]) -> None:
    complaint = doomed["faults"].complaint()
    for name in ("NATS_URL is not set", "PORT", "LOG_LEVEL", "PATIENCE_S"):
        assert f"IRONCART_{name}" in complaint
    assert "70000" not in complaint
    assert len(doomed["faults"].lines) == 1


def test_a_service_that_nobody_could_call_does_not_start(doomed: dict[str, Ended]) -> None:
    assert "set IRONCART_AUTH=off" in doomed["auth"].complaint()


def test_no_authentication_is_for_a_loopback_address(doomed: dict[str, Ended]) -> None:
    assert "set IRONCART_HOST=127.0.0.1" in doomed["host"].complaint()


def test_a_port_in_use_is_said(doomed: dict[str, Ended]) -> None:
    assert "cannot listen on 127.0.0.1:" in doomed["port"].complaint()
    assert "Address already in use" in doomed["port"].complaint()


def test_no_secret_is_said(doomed: dict[str, Ended], postgres: Postgres) -> None:
    password = postgres.url_of("postgres").split(":")[2].split("@")[0]
    for ended in doomed.values():
        said = json.dumps(ended.lines)
        assert password not in said
        assert "wrong@" not in said
        assert "secret" not in said


async def test_an_unsafe_broker_is_used_when_that_is_allowed_and_said_loudly(
    lax: LaxBroker, broker: NatsServer, database_url: str, tmp_path: Path
) -> None:
    async with bench(lax.url(), database_url) as parts:
        environ = environment(
            broker,
            database_url,
            NATS_URL=lax.url(),
            NATS_MONITOR_URL=lax.monitor_url,
            ALLOW_UNSAFE_BROKER="true",
        )
        async with process("beta", parts.topology, environ, tmp_path) as beta:
            await beta.until_ready()
            (line,) = beta.said("UNSAFE BROKER")
            assert line["level"] == "warning"
            assert "sync_interval: always" in line["error"]
