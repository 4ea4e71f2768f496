"""The users in NATS's values are those that the services declare, under TLS from both sides."""

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # its stubs are not locked
from typer.testing import CliRunner

from ironcart.cli import application
from ironcart.cli.permissions import users
from ironcart.events import STREAMS

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
VALUES = DEPLOY / "nats" / "values.yaml"
ON_A_LAPTOP = DEPLOY / "nats" / "values-dev.yaml"
CHART_ON_A_LAPTOP = DEPLOY / "helm" / "ironcart" / "values-dev.yaml"
GIB = 1024**3


def parsed(text: str) -> Any:
    return yaml.safe_load(text)


def printed(form: str) -> str:
    arguments = ["permissions", "--format", form]
    done = CliRunner().invoke(application(arguments), arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_committed_users_are_the_generated_ones() -> None:
    committed = parsed(VALUES.read_text())
    generated = parsed(printed("helm"))

    assert (
        committed["config"]["merge"]["authorization"]
        == generated["config"]["merge"]["authorization"]
    ), "put in what `ironcart permissions --format helm` prints"
    assert generated["container"]["env"].items() <= committed["container"]["env"].items()


def test_every_user_has_a_password_of_its_own_from_the_secret() -> None:
    generated = parsed(printed("helm"))
    told = {each["user"]: each["password"] for each in _users(generated)}

    assert set(told) == set(users())
    for user, password in told.items():
        variable = password.removeprefix("<< $").removesuffix(" >>")
        found = generated["container"]["env"][variable]["valueFrom"]["secretKeyRef"]
        assert found == {"name": "nats-users", "key": user}


def test_both_forms_say_the_same() -> None:
    text = printed("nats")
    for each in _users(parsed(printed("helm"))):
        assert f"user: {each['user']}, password: ${each['user'].upper()}_PASSWORD" in text
        for kind in ("publish", "subscribe"):
            listed = "".join(
                f'        "{subject}"\n' for subject in each["permissions"][kind]["allow"]
            )
            assert f"{kind}: {{ allow: [\n{listed}      ] }}" in text


def test_nobody_reaches_a_node_without_a_certificate_nor_in_the_clear() -> None:
    config = parsed(VALUES.read_text())["config"]

    assert config["nats"]["tls"]["enabled"]
    assert config["nats"]["tls"]["merge"] == {
        "verify": True,
        "handshake_first": True,
        "min_version": "1.2",
    }
    assert config["cluster"]["tls"]["merge"]["verify"]


def test_the_node_on_a_laptop_has_the_same_users_syncs_and_asks_for_no_certificate() -> None:
    values = _merged(parsed(VALUES.read_text()), parsed(ON_A_LAPTOP.read_text()))
    config, chart = values["config"], parsed(CHART_ON_A_LAPTOP.read_text())["nats"]

    assert config["merge"] == parsed(VALUES.read_text())["config"]["merge"]
    assert config["jetstream"]["merge"]["sync_interval"] == "always"
    assert not config["cluster"]["enabled"]
    assert len(chart["pods"]) == chart["streamReplicas"] == 1
    for part in (config["nats"]["tls"], config["cluster"]["tls"], values["tlsCA"]):
        assert not part["enabled"]
    for name, needs in parsed(printed("helm"))["container"]["env"].items():
        assert values["container"]["env"][name] == needs
    room = int(config["jetstream"]["fileStore"]["maxSize"].removesuffix("Gi"))
    assert len(STREAMS) * chart["streamBytesMax"] <= room * GIB
    assert room < int(config["jetstream"]["fileStore"]["pvc"]["size"].removesuffix("Gi"))


def _merged(below: Any, above: Any) -> Any:
    """Values as Helm puts them on top of others: mappings are merged, all else is replaced."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    both = {name: _merged(below[name], above[name]) for name in below.keys() & above.keys()}
    return {**below, **above, **both}


def _users(values: Any) -> list[Any]:
    found: list[Any] = values["config"]["merge"]["authorization"]["users"]
    return found
