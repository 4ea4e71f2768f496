"""What `up` tells its parts, and what run.json says about them."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ironcart.cli.permissions import users
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


def system(folder: Path, environ: Mapping[str, str], **options: Any) -> System:
    lock = claim(folder)
    os.close(lock)
    return System(folder, first_port=free_ports(), environ=environ, lock=lock, **options)


def test_only_a_services_own_address_can_send_it_elsewhere(folder: Path) -> None:
    elsewhere = {
        "IRONCART_PAYMENTS_NATS_URL": "nats://me:p@127.0.0.1:1",
        "IRONCART_PAYMENTS_DATABASE_URL": "postgresql://me:p@elsewhere/db",
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
        theirs = elsewhere if child.name == "payments" else {}
        assert theirs == {key: child.env[key] for key in elsewhere if key in child.env}
        assert "IRONCART_ORDERS_PORT" not in child.env
        assert f"//ironcart_{child.name}:" in child.env["IRONCART_DATABASE_URL"]
        assert child.env["IRONCART_VAULT_DATABASE_URL"] == child.env["IRONCART_DATABASE_URL"]
        owners = made.postgres.url.partition("//")[2].partition("@")[0].split(":")[1]
        known = [key for key, value in child.env.items() if owners in value]
        assert not known, "a service does not know the owner's password"
        assert not [key for key in child.env if key.endswith("_ROLE_PASSWORD")]
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


def test_everybody_comes_to_the_broker_as_itself_wherever_it_is_sent(folder: Path) -> None:
    sent = {"IRONCART_PAYMENTS_NATS_URL": "nats://127.0.0.1:1"}
    made = system(folder, sent, users=users())
    told = json.loads((folder / "nats.users").read_text())

    def signed(user: str) -> str:
        return made.brokers[0].url.replace("//", f"//{user}:{told[user]}@")

    assert set(told) == {*users(), "route"}
    assert len(set(told.values())) == len(told)
    assert stat.S_IMODE((folder / "nats.users").stat().st_mode) == 0o600
    assert made.environ()["IRONCART_NATS_URL"] == signed("provision")
    for child in made.services():
        assert child.env is not None
        assert child.env["IRONCART_NATS_URL"] == signed(child.name)
        others = [password for user, password in told.items() if user != child.name]
        assert not [value for value in child.env.values() if any(p in value for p in others)]
    (payments,) = [child for child in made.services() if child.name == "payments"]
    assert payments.env is not None
    assert payments.env["IRONCART_PAYMENTS_NATS_URL"] == (
        f"nats://payments:{told['payments']}@127.0.0.1:1"
    )
    assert system(folder, {}, users=users()).brokers[0].url_for("operator") == signed("operator")


def test_everybody_comes_to_the_database_as_itself_wherever_it_is_sent(folder: Path) -> None:
    sent = {"IRONCART_ORDERS_VAULT_DATABASE_URL": "postgresql://127.0.0.1:1/ironcart"}
    made = system(folder, sent)
    told = json.loads((folder / "postgres.roles").read_text())

    assert set(told) == set(SERVICES)
    assert len(set(told.values())) == len(told)
    assert stat.S_IMODE((folder / "postgres.roles").stat().st_mode) == 0o600
    environ = made.environ()
    for service, password in told.items():
        assert environ[f"IRONCART_{service.upper()}_ROLE_PASSWORD"] == password
    (orders,) = [child for child in made.services() if child.name == "orders"]
    assert orders.env is not None
    assert orders.env["IRONCART_ORDERS_VAULT_DATABASE_URL"] == (
        f"postgresql://ironcart_orders:{told['orders']}@127.0.0.1:1/ironcart"
    )
    (folder / "postgres.roles").write_text("damaged")
    system(folder, {})
    assert set(json.loads((folder / "postgres.roles").read_text())) == set(SERVICES)


def test_nodes_of_a_cluster_ask_each_other_for_a_password_and_a_certificate(folder: Path) -> None:
    made = system(folder, {}, nats_nodes=3, users=users(), tls=True)

    for node in made.brokers:
        path = Path(node.child().argv[-1])
        routes = path.read_text().partition("cluster {")[2]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert routes.count("nats://route:") == 3
        assert "authorization { user: route, password:" in routes
        assert "verify: true" in routes


def test_with_tls_every_service_has_a_certificate_of_its_own_and_is_reached_by_https(
    folder: Path,
) -> None:
    made = system(folder, {"IRONCART_TLS_DIR": "/elsewhere"}, users=users(), tls=True)

    for child in made.services():
        assert child.env is not None
        assert child.env["IRONCART_TLS_DIR"] == str(folder / "tls" / child.name)
        assert made.url_of(child.name).startswith("https://")
    assert made.environ()["IRONCART_TLS_DIR"] == str(folder / "tls" / "operator")
    plain = system(folder, {"IRONCART_TLS_DIR": "/elsewhere"}, users=users())
    assert plain.environ()["IRONCART_TLS_DIR"] == ""
    assert plain.ca is None
