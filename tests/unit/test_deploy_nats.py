"""The users in NATS's values are those that the services declare, under TLS from both sides."""

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # its stubs are not locked
from typer.testing import CliRunner

from ironcart.cli import application
from ironcart.cli.permissions import users

VALUES = Path(__file__).parent.parent.parent / "deploy" / "nats" / "values.yaml"


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


def _users(values: Any) -> list[Any]:
    found: list[Any] = values["config"]["merge"]["authorization"]["users"]
    return found
