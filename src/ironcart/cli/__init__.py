"""The command line: the only package that knows every service."""

import sys

import typer

from ironcart.cli import deadletters, doctor, load, order, provision, run, up, verify
from ironcart.toolkit.outcomes import IroncartError

app = typer.Typer(
    help="Ironcart takes an online shop's orders and loses none of them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(up.up)
app.command()(run.run)
app.command("provision")(provision.command)
app.command()(load.load)
app.command()(order.order)
app.command()(verify.verify)
app.command()(doctor.doctor)
app.add_typer(deadletters.app, name="deadletters")


def main() -> None:
    """Run one command; a fault of ours is one line and exit code 1."""
    try:
        app()
    except IroncartError as error:
        print(f"ironcart: {error}", file=sys.stderr)
        sys.exit(1)
