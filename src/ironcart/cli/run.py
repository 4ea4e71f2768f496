"""`ironcart run SERVICE`: one service, as a container runs it."""

import sys
from typing import Annotated

import typer

from ironcart.cli import services
from ironcart.toolkit import lifecycle
from ironcart.toolkit.settings import environment


def run(
    service: Annotated[str, typer.Argument(help=f"One of {', '.join(services.NAMES)}.")],
    allow_unsafe_broker: Annotated[
        bool, typer.Option(help="Run although the broker may lose what it acknowledged.")
    ] = False,
) -> None:
    """Run one service until SIGTERM; it is configured by its environment."""
    if service not in services.NAMES:
        known = ", ".join(services.NAMES)
        typer.echo(f"ironcart run: there is no service {service!r}: use one of {known}", err=True)
        raise typer.Exit(2)
    environ = environment()
    if allow_unsafe_broker:
        environ["IRONCART_ALLOW_UNSAFE_BROKER"] = "true"
    sys.exit(lifecycle.run(services.find(service), environ))
