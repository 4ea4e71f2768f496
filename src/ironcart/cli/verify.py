"""`ironcart verify`: every invariant from the outside, with figures."""

import gc
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from ironcart.verify.facts import CannotReadError
from ironcart.verify.outside import verify as judge

EXIT_BROKEN = 1
EXIT_CANNOT_READ = 2


def verify(
    *,
    data: Annotated[Path, typer.Option(help="The folder of `ironcart up`.")] = Path(".ironcart"),
    settle: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for quiet before judging.")
    ] = 60,
    expect_dead_letters: Annotated[
        int, typer.Option(min=0, help="How many dead letters were injected on purpose.")
    ] = 0,
    terminal_within: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds within which 99 in 100 orders have to end."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON line.")
    ] = False,
) -> None:
    """Check every invariant from the outside; exit 1 when one is broken, 2 when unreadable."""
    told: set[str] = set()

    def tell(line: str) -> None:
        # Figures change at each look; one line a reason is enough.
        kind = "".join(letter for letter in line if not letter.isdigit() and letter != ",")
        if kind not in told:
            told.add(kind)
            print(line, file=sys.stderr)

    # One pass over millions of records without a cycle among them: collecting finds nothing.
    gc.disable()
    try:
        report = uvloop.run(
            judge(
                data,
                settle_s=settle,
                expected_dead_letters=expect_dead_letters,
                terminal_within_s=terminal_within,
                tell=tell,
            )
        )
    except CannotReadError as error:
        print(f"ironcart verify: cannot read: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_CANNOT_READ) from None
    finally:
        gc.enable()
    if as_json:
        print(json.dumps(report.as_json(), ensure_ascii=False))
    else:
        print("\n".join(report.lines()))
    if not report.ok:
        raise typer.Exit(EXIT_BROKEN)
