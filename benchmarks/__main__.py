"""`python -m benchmarks`: measures on this machine, and says what it found."""

import argparse
import asyncio
import sys
from collections.abc import Sequence

import uvloop

from benchmarks.bed import Bed, CannotMeasure
from benchmarks.endtoend import closed, open_loop, warm_up


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each spell")
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.3, 0.5, 0.7])
    given = parser.parse_args(argv)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(given))
    except CannotMeasure as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(given: argparse.Namespace) -> None:
    async with Bed() as bed:
        await warm_up(bed)
        most = await closed(bed, given.seconds, given.connections)
        print("closed loop", *most.lines(), sep="\n", flush=True)
        for share in given.shares:
            rate = share * most.per_minute / 60
            spell = await open_loop(bed, rate, given.seconds / 2)
            print(f"open loop, {share:.0%}: {rate:.0f}/s", *spell.lines(), sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
