"""`ironcart load`: places orders by the clock or as fast as they are answered, and reports."""

import json
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from ironcart.load.plan import InvalidPlanError, Plan, find_target
from ironcart.load.run import run
from ironcart.toolkit.settings import environment

# An operator's, or the stock is left as it is.
API_KEY = "IRONCART_API_KEY"
EXIT_NOT_TERMINAL = 1
EXIT_CANNOT_START = 2


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
    data: Annotated[
        Path, typer.Option(help="The folder of `ironcart up`; the log goes to DIR/load.")
    ] = Path(".ironcart"),
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
            target=find_target(data, url, inventory_url, environment().get(API_KEY, "")),
            log_folder=data / "load",
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


def _tell(line: str) -> None:
    print(line, flush=True)
