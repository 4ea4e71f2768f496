"""The command line: the only package that knows every service."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import typer

from ironcart.toolkit.outcomes import IroncartError

# Command -> where it is. A command's module is imported when it is called, or for the help: a
# service should not pay for the load generator, nor the checker for a web framework.
COMMANDS: Final = {
    "up": ("ironcart.cli.up", "up"),
    "run": ("ironcart.cli.run", "run"),
    "apikey": ("ironcart.cli.apikey", "app"),
    "provision": ("ironcart.cli.provision", "command"),
    "load": ("ironcart.cli.load", "load"),
    "order": ("ironcart.cli.order", "order"),
    "verify": ("ironcart.cli.verify", "verify"),
    "audit": ("ironcart.cli.audit", "app"),
    "deadletters": ("ironcart.cli.deadletters", "app"),
    "erase": ("ironcart.cli.erase", "erase"),
    "vault": ("ironcart.cli.vault", "app"),
    "rebuild": ("ironcart.cli.rebuild", "rebuild"),
    "republish": ("ironcart.cli.republish", "republish"),
    "doctor": ("ironcart.cli.doctor", "doctor"),
    "permissions": ("ironcart.cli.permissions", "permissions"),
}


def application(arguments: Sequence[str]) -> typer.Typer:
    """Make the command line for these arguments: the one command they name, or all of them."""
    app = typer.Typer(
        help="Ironcart takes an online shop's orders and loses none of them.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback()(lambda: None)  # So that a lone command keeps its name.
    named = [name for name in arguments[:1] if name in COMMANDS]
    for name in named or COMMANDS:
        module, attribute = COMMANDS[name]
        command = getattr(import_module(module), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def main() -> None:
    """Run one command; a fault of ours is one line and exit code 1."""
    try:
        application(sys.argv[1:])()
    except IroncartError as error:
        print(f"ironcart: {error}", file=sys.stderr)
        sys.exit(1)
