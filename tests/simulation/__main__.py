"""Run many schedules, or one again: `PYTHONPATH=tests python -m simulation --seeds 1000`."""

import argparse
import sys
import time
from collections import Counter

from simulation.runs import every_step, missing
from simulation.schedule import Plan, Verdict, run


def main() -> int:
    """Print what was exercised; 1 when a rule is broken or something never happened."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many schedules")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--trace", action="store_true", help="say everything that it does")
    parser.add_argument("--steps", action="store_true", help="crash at every step of a short one")
    options = parser.parse_args()
    began = time.monotonic()
    if options.seed is not None:
        verdicts = [run(Plan(options.seed, tracing=options.trace))]
        sys.stdout.writelines(f"{line}\n" for line in verdicts[0].trace)
    elif options.steps:
        verdicts = list(every_step())
    else:
        verdicts = [run(Plan(options.first + n)) for n in range(options.seeds)]
    whole = len(verdicts) >= 100 and not options.steps
    return report(verdicts, time.monotonic() - began, whole=whole)


def report(verdicts: list[Verdict], took_s: float, *, whole: bool) -> int:
    """Say how it went."""
    seen: Counter[str] = Counter()
    for verdict in verdicts:
        seen.update(verdict.seen)
    for what, times in sorted(seen.items()):
        sys.stdout.write(f"{times:>9,}  {what}\n")
    bad = [verdict for verdict in verdicts if verdict.broken]
    for verdict in bad[:20]:
        sys.stdout.write(f"seed {verdict.seed}:\n")
        sys.stdout.writelines(f"    {each}\n" for each in verdict.broken[:6])
    never = missing(seen) if whole else []
    for what in never:
        sys.stdout.write(f"never happened: {what}\n")
    pace = len(verdicts) / took_s
    sys.stdout.write(
        f"{len(verdicts):,} schedules in {took_s:.1f} s ({pace:.0f}/s), {len(bad)} broken\n"
    )
    return int(bool(bad) or bool(never))


if __name__ == "__main__":
    sys.exit(main())
