"""Betas that cannot run: `python heart_doomed.py FOLDER TAG SECONDS`, told in JSON what each is
told, by name; their logs go to FOLDER, and it answers in JSON with their exit codes.

All are forked from one process: loading the toolkit takes far longer than finding that nothing
comes of it. One that has not ended within SECONDS is ended, and its code is that of SIGALRM.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from heart_parts import Topology
from heart_service import service
from ironcart.toolkit import lifecycle

STDOUT, STDERR = 1, 2


def begin(log: Path, topology: Topology, environ: Mapping[str, str], seconds: int) -> int:
    """Fork a beta; returns its pid, and never in the beta."""
    if pid := os.fork():
        return pid
    signal.alarm(seconds)
    out = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(out, STDOUT)
    os.dup2(out, STDERR)
    sys.exit(lifecycle.run(service("beta", topology), environ))


def main(folder: Path, topology: Topology, seconds: int) -> None:
    """Begin all of them at once, and wait for all of them."""
    told: dict[str, dict[str, str]] = json.load(sys.stdin)
    pids = {name: begin(folder / name, topology, each, seconds) for name, each in told.items()}
    statuses = {name: os.waitpid(pid, 0)[1] for name, pid in pids.items()}
    codes = {name: os.waitstatus_to_exitcode(status) for name, status in statuses.items()}
    json.dump(codes, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Topology(sys.argv[2]), int(sys.argv[3]))
