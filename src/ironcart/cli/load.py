"""`ironcart load`: places orders by the clock or as fast as they are answered, and reports."""

import json
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from ironcart.cli.address import DATA_DEFAULT
from ironcart.load.plan import InvalidPlanError, Plan, Target, find_target, issuer_of
from ironcart.load.run import run
from ironcart.toolkit import settings, tls

# An operator's, or the stock is left as it is.
API_KEY = "IRONCART_API_KEY"
EXIT_NOT_TERMINAL = 1
EXIT_CANNOT_START = 2

Folder = Annotated[
    Path | None,
    typer.Option(
        help="The folder of `ironcart up`; the log goes to DIR/load.",
        show_default=str(DATA_DEFAULT),
    ),
]


def load(
    *,
    rate: Annotated[
        float, typer.Option(min=0, help="Orders a second, by the clock; 0: as fast as answered.")
    ] = 0,
    duration: Annotated[
        float, typer.Option(min=0, help="Seconds to go on placing orders; 0: until stopped.")
    ] = 0,
    orders: Annotated[
        int, typer.Option(min=0, help="Place this many and wait until all are terminal.")
    ] = 0,
    data: Folder = None,
    url: Annotated[
        str | None, typer.Option(help="The orders API, instead of the one in run.json.")
    ] = None,
    inventory_url: Annotated[
        str | None, typer.Option(help="The inventory API; with --url alone stock is left alone.")
    ] = None,
    connections: Annotated[
        int, typer.Option(min=1, help="Requests at once when there is no rate.")
    ] = 64,
    customers: Annotated[int, typer.Option(min=1, help="How many customers order.")] = 1_000,
    skus: Annotated[int, typer.Option(min=1, help="How many SKUs they order.")] = 50,
    settle: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for the last order's end.")
    ] = 60,
    seed: Annotated[
        int | None, typer.Option(help="Draw the same orders as another run with this seed.")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="No progress, only the summary.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with the summary as one JSON line.")
    ] = False,
) -> None:
    """Place orders, follow them to their end, and report rates and percentiles."""
    try:
        plan = Plan(
            target=_target(data, url, inventory_url),
            log_folder=(data or DATA_DEFAULT) / "load",
            rate=rate,
            duration_s=duration,
            orders=orders,
            connections=connections,
            customers=customers,
            skus=skus,
            settle_s=settle,
            seed=seed,
        )
        tally = uvloop.run(run(plan, tell=_tell, quiet=quiet))
    except InvalidPlanError as error:
        typer.echo(f"ironcart load: {error}", err=True)
        raise typer.Exit(EXIT_CANNOT_START) from None
    for line in tally.lines():
        _tell(line)
    if as_json:
        _tell(json.dumps(tally.as_json()))
    if orders and (tally.accepted < orders or tally.terminal < tally.accepted):
        raise typer.Exit(EXIT_NOT_TERMINAL)


def _target(data: Path | None, url: str | None, inventory_url: str | None) -> Target:
    """Where to, and whom to trust there: with --url the issuer of a folder that was named."""
    environ = settings.environment()
    tls_dir = settings.load(tls.Settings, environ).tls_dir
    key, ca = environ.get(API_KEY, ""), issuer_of(data) if data else ""
    if tls_dir:
        ca = str(Path(tls_dir) / tls.CA)
    return find_target(data or DATA_DEFAULT, url, inventory_url, key, ca=ca)


def _tell(line: str) -> None:
    print(line, flush=True)
