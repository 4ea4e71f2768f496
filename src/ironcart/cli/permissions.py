"""`ironcart permissions`: what each user may do at the broker, for the broker's configuration."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import typer

from ironcart.cli import services
from ironcart.events import STREAMS
from ironcart.toolkit.permissions import (
    OPERATOR,
    PROVISION,
    Permissions,
    of_operator,
    of_provision,
    of_service,
    server_users,
)

# Where NATS's own chart finds the users' passwords: keys of a Secret, told by the environment.
SECRET = "nats-users"  # noqa: S105 - its name


class Format(StrEnum):
    """What the users are written for."""

    NATS = "nats"
    HELM = "helm"


def permissions(
    form: Annotated[
        Format,
        typer.Option("--format", help="A nats-server's configuration, or its chart's values."),
    ] = Format.NATS,
) -> None:
    """Print the broker's users and what each may do, as the services declare it.

    Passwords are left to the environment: ORDERS_PASSWORD and so on, each beginning with a letter.
    """
    write = server_configuration if form is Format.NATS else chart_values
    print(write(users()), end="")


def users() -> dict[str, Permissions]:
    """Every user of the broker: the services, who provisions, and who repairs."""
    cards = services.every()
    durables = [durable for card in cards.values() for durable in card.durables]
    found = {
        name: of_service(name, card.subjects.values(), card.durables, STREAMS)
        for name, card in cards.items()
    }
    found[PROVISION] = of_provision(STREAMS, durables)
    found[OPERATOR] = of_operator(STREAMS)
    return found


def server_configuration(found: Mapping[str, Permissions]) -> str:
    """The users as a nats-server's configuration has them."""
    return server_users(found, lambda user: f"${_variable(user)}")


def chart_values(found: Mapping[str, Permissions]) -> str:
    """The users as values of NATS's own chart."""
    lines = ["config:", "  merge:", "    authorization:", "      users:"]
    for user, allowed in found.items():
        lines += [f"        - user: {user}", f"          password: << ${_variable(user)} >>"]
        lines += ["          permissions:"]
        for kind, subjects in (("publish", allowed.publish), ("subscribe", allowed.subscribe)):
            lines += [f"            {kind}:", "              allow:"]
            lines += [f'                - "{subject}"' for subject in subjects]
    lines += ["container:", "  env:"]
    for user in found:
        lines += [f"    {_variable(user)}:", "      valueFrom:"]
        lines += [f"        secretKeyRef: {{name: {SECRET}, key: {user}}}"]
    return "\n".join([*lines, ""])


def _variable(user: str) -> str:
    return f"{user.upper()}_PASSWORD"
