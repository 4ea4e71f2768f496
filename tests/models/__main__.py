"""Run the models within large budgets: `PYTHONPATH=tests .venv/bin/python -m models [--small]`."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from models import transport
from models.explorer import Model, explore
from models.payments import runs as payments
from models.saga import story as saga

FAMILIES = ("payments", "saga", "transport")


def configurations(family: str, *, small: bool) -> Iterator[Model[Any]]:
    """The protocols as they are, without the variants that are meant to break."""
    match family:
        case "payments":
            yield from payments.small() if small else payments.full()
        case "saga":
            yield from saga.small() if small else saga.full()
        case _:
            yield from transport.small() if small else transport.full()


def main() -> int:
    """Print a line for each configuration; 1 when a rule is broken or a walk was not complete."""
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    parser.add_argument("family", nargs="*", choices=[*FAMILIES, []], help="all of them by default")
    parser.add_argument("--small", action="store_true", help="the budgets of the tests")
    options = parser.parse_args()
    bad = 0
    for family in options.family or FAMILIES:
        for model in configurations(family, small=options.small):
            report = explore(model)
            bad += bool(report.broken) or not report.complete
            ends = ", ".join(f"{end} {count:,}" for end, count in sorted(report.ends.items()))
            sys.stdout.write(f"{family:<9} {report}\n{'':<9} {ends}\n")
            sys.stdout.flush()
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
