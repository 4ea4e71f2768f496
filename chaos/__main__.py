"""`python -m chaos`: exit 0 when all is well, 1 for a broken invariant or a fault that never bit,
2 when it could not start."""

import argparse
import asyncio
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from chaos.plan import Options, choose
from chaos.report import Report, write
from chaos.rows import ROWS
from chaos.rows.cluster import CLUSTER_ROWS
from chaos.run import Run
from chaos.system import CannotStart, discard

CLUSTER_NODES = 3
OK, BROKEN, NOT_STARTED = 0, 1, 2
SHORT_RATE = 15.0
# The short run is over in ten minutes, set-up, drain and judgement included.
SHORT_BUDGET_S = 470.0
SHORT_ROWS_MIN = 30
SHORT_DRAIN_S, LONG_DRAIN_S = 90.0, 300.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the harness once and say how it went."""
    given = _arguments().parse_args(argv)
    seed = given.seed if given.seed is not None else secrets.randbelow(10**6)
    try:
        if given.defects:
            from chaos.defects.run import run_defects

            found = run_defects(given.only, seed, given.out, _tell, docs=given.write_docs)
            return asyncio.run(found)
        return asyncio.run(_run(given, seed))
    except CannotStart as error:
        print(f"chaos: {error}", file=sys.stderr)
        return NOT_STARTED


async def _run(given: argparse.Namespace, seed: int) -> int:
    minutes = given.minutes or 0.0
    options = Options(
        seed=seed,
        rate=given.orders / (minutes * 60) if given.orders and minutes else given.rate,
        orders=given.orders,
        minutes=minutes,
        every_s=given.every,
        only=tuple(given.only),
        drain_s=LONG_DRAIN_S if minutes else SHORT_DRAIN_S,
        budget_s=0 if minutes or given.only or given.cluster else SHORT_BUDGET_S,
        rows_min=0 if given.cluster else SHORT_ROWS_MIN,
    )
    rows, left_out = choose(CLUSTER_ROWS if given.cluster else ROWS, options)
    if not rows:
        raise CannotStart("no row is left: see --list")
    own = given.data is None
    data = given.data or Path(tempfile.mkdtemp(prefix="ironcart-chaos-", dir="/var/tmp"))
    _tell(f"seed {seed}, {len(rows)} rows, {options.rate:g} orders a second, data in {data}")
    for name, why in left_out.items():
        _tell(f"left out: {name}: {why}")
    nodes = CLUSTER_NODES if given.cluster else 1
    run = Run(data, options, rows, environ=os.environ, tell=_tell, nodes=nodes)
    result = await run.run()
    report = Report(options, result, rows, left_out)
    write(report, given.out, docs=given.write_docs)
    for line in report.lines():
        print(line)
    _tell(f"report in {given.out}: {report.verdict}")
    if own and not report.complaints:
        discard(data)
    return BROKEN if report.complaints else OK


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--orders", type=int, default=0, help="orders of the long run")
    parser.add_argument("--minutes", type=float, help="length of the long run")
    parser.add_argument("--rate", type=float, default=SHORT_RATE, help="orders a second")
    parser.add_argument("--seed", type=int, help="decides order, targets and durations")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two faults")
    parser.add_argument("--data", type=Path, help="data folder of the system; kept")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the report goes")
    parser.add_argument(
        "--only", nargs="*", default=[], help="rows whose names contain one of these, or defects"
    )
    parser.add_argument("--defects", action="store_true", help="break defences, expect to notice")
    parser.add_argument(
        "--cluster", action="store_true", help="the rows of a broker with three nodes"
    )
    parser.add_argument("--write-docs", action="store_true", help="put the table in the docs")
    return parser


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
