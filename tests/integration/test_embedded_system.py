"""What `up` tells its parts, and what run.json says about them."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ironcart.embedded.folder import claim
from ironcart.embedded.placement import forget
from ironcart.embedded.ports import SERVICES, free_port, is_free
from ironcart.embedded.process import CannotStart
from ironcart.embedded.supervisor import Part
from ironcart.embedded.system import System


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    found = tmp_path / "data"
    yield found
    forget(found)


def system(folder: Path, environ: Mapping[str, str]) -> System:
    while True:
        first = free_port()
        if all(is_free(port) for port in range(first, first + 7)):
            lock = claim(folder)
            os.close(lock)
            return System(folder, first_port=first, environ=environ, lock=lock)


def test_a_setting_of_one_service_cannot_send_it_elsewhere(folder: Path) -> None:
    elsewhere = {
        "IRONCART_DATABASE_URL": "postgresql://elsewhere/db",
        "IRONCART_PAYMENTS_DATABASE_URL": "postgresql://elsewhere/db",
        "IRONCART_ORDERS_PORT": "1",
        "IRONCART_PAYMENTS_STRIPE_API_BASE": "https://api.stripe.com",
    }
    wanted = {"IRONCART_LOG_LEVEL": "debug", "IRONCART_ORDERS_EXPIRE_AFTER_S": "60", "PATH": "/x"}
    made = system(folder, elsewhere | wanted)

    environ = made.environ()

    assert wanted.items() <= environ.items()
    assert environ["IRONCART_DATABASE_URL"] == made.postgres.url
    assert not set(elsewhere) - {"IRONCART_DATABASE_URL"} & set(environ)
    assert environ["IRONCART_STRIPE_API_BASE"] == f"http://127.0.0.1:{made.ports['sandbox']}"
    for child in made.services():
        assert child.env is not None
        assert child.env["IRONCART_PORT"] == str(made.ports[child.name])
        assert child.env["IRONCART_HOST"] == "127.0.0.1"


def test_an_old_run_file_is_gone_before_anything_can_be_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "run.json").write_text("{}")

    with pytest.raises(CannotStart):
        System(folder, first_port=0, environ={}, lock=0)

    assert not (folder / "run.json").exists()


def test_the_run_file_is_private_and_names_data_that_is_kept_elsewhere(folder: Path) -> None:
    made = system(folder, {})
    children = [made.broker.child(), made.sandbox(), *made.services()]
    parts = {child.name: Part(child, pid=number) for number, child in enumerate(children)}
    parts["postgres"] = Part(replace(made.sandbox(), name="postgres"), pid=99)

    made.write_run(parts)

    run = json.loads((folder / "run.json").read_text())
    assert stat.S_IMODE((folder / "run.json").stat().st_mode) == 0o600
    assert list(run["services"]) == list(SERVICES)
    assert [service["pids"] for service in run["services"].values()] == [[2], [3], [4], [5], [6]]
    assert run["nats"]["pids"] == [0]
    assert run["sandbox"]["pid"] == 1
    assert run["postgres"]["pid"] == 99
    assert ("data" in run["postgres"]) == made.postgres.placement.outside
