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
from ironcart.embedded.ports import SERVICES
from ironcart.embedded.process import CannotStart
from ironcart.embedded.supervisor import Part
from ironcart.embedded.system import System
from shopping import free_ports


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    found = tmp_path / "data"
    yield found
    forget(found)


def system(folder: Path, environ: Mapping[str, str], nats_nodes: int | None = None) -> System:
    lock = claim(folder)
    os.close(lock)
    return System(
        folder, first_port=free_ports(), environ=environ, lock=lock, nats_nodes=nats_nodes
    )


def test_only_a_services_own_address_can_send_it_elsewhere(folder: Path) -> None:
    elsewhere = {
        "IRONCART_PAYMENTS_NATS_URL": "nats://127.0.0.1:1",
        "IRONCART_PAYMENTS_DATABASE_URL": "postgresql://elsewhere/db",
        "IRONCART_PAYMENTS_STRIPE_API_BASE": "http://127.0.0.1:2",
    }
    ignored = {
        "IRONCART_DATABASE_URL": "postgresql://elsewhere/db",
        "IRONCART_ORDERS_PORT": "1",
        "IRONCART_ORDERS_HOST": "0.0.0.0",
    }
    wanted = {"IRONCART_LOG_LEVEL": "debug", "IRONCART_ORDERS_EXPIRE_AFTER_S": "60", "PATH": "/x"}
    made = system(folder, elsewhere | ignored | wanted)

    environ = made.environ()

    assert wanted.items() <= environ.items()
    assert environ["IRONCART_DATABASE_URL"] == made.postgres.url
    assert not set(elsewhere) & set(environ), "what is provisioned is what we run"
    assert environ["IRONCART_STRIPE_API_BASE"] == f"http://127.0.0.1:{made.ports['sandbox']}"
    for child in made.services():
        assert child.env is not None
        assert elsewhere.items() <= child.env.items()
        assert "IRONCART_ORDERS_PORT" not in child.env
        assert child.env["IRONCART_DATABASE_URL"] == made.postgres.url
        assert child.env["IRONCART_PORT"] == str(made.ports[child.name])
        assert child.env["IRONCART_HOST"] == "127.0.0.1"


def test_every_node_of_the_broker_has_its_own_ports_and_store_and_knows_the_others(
    folder: Path,
) -> None:
    made = system(folder, {}, nats_nodes=3)

    configs = [Path(node.child().argv[-1]).read_text() for node in made.brokers]

    assert len({node.store for node in made.brokers}) == 3
    urls = made.environ()["IRONCART_NATS_URL"].split(",")
    assert len(urls) == len(set(urls)) == 3
    assert made.environ()["IRONCART_STREAM_REPLICAS"] == "3"
    assert len(made.environ()["IRONCART_NATS_MONITOR_URL"].split(",")) == 3
    assert len({config[config.index("routes:") :] for config in configs}) == 1
    assert all("sync_interval: always" in config for config in configs)
    again = system(folder, {})
    assert [node.url for node in again.brokers] == [node.url for node in made.brokers]


@pytest.mark.parametrize(("had", "wanted"), [(1, 3), (3, 1)])
def test_a_folder_keeps_its_number_of_nodes(folder: Path, had: int, wanted: int) -> None:
    system(folder, {}, nats_nodes=had)

    with pytest.raises(
        CannotStart, match=f"made with --nats-nodes {had}.* start it with {had}, or"
    ):
        system(folder, {}, nats_nodes=wanted)

    assert len(system(folder, {}).brokers) == had


def test_a_folder_from_before_there_were_clusters_has_one_node(folder: Path) -> None:
    (folder / "nats" / "broker-1").mkdir(parents=True)

    with pytest.raises(CannotStart, match="made with --nats-nodes 1"):
        system(folder, {}, nats_nodes=3)

    assert len(system(folder, {}).brokers) == 1


def test_a_number_of_nodes_that_has_no_majority_to_lose_is_refused(folder: Path) -> None:
    with pytest.raises(CannotStart, match="--nats-nodes 2: choose 1, 3, 5"):
        system(folder, {}, nats_nodes=2)


def test_an_old_run_file_is_gone_before_anything_can_be_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "run.json").write_text("{}")

    with pytest.raises(CannotStart):
        System(folder, first_port=0, environ={}, lock=0)

    assert not (folder / "run.json").exists()


def test_the_run_file_is_private_and_names_data_that_is_kept_elsewhere(folder: Path) -> None:
    made = system(folder, {})
    children = [made.brokers[0].child(), made.sandbox(), *made.services()]
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
