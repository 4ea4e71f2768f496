"""Where a figure comes from: machine, commit and time, to be kept beside it."""

import os
import platform
import subprocess
import time
from pathlib import Path
from statistics import median

import psutil

ROOT = Path(__file__).parent.parent
GIT_TIMEOUT_S = 10
BYTES_PER_GIB = 2**30
# Looked at before anything is started; when more than this was busy, the figures are suspect.
LOOK_S = 2.0
BUSY_PERCENT_MAX = 10.0
# A machine that shares its cores with others is faster and slower by the minute: so much Python is
# timed, a few times, to say in which state a figure found it.
FIXED_ROUNDS = 5
FIXED_LOOPS = 1_000_000


def facts() -> dict[str, str]:
    """Say what this machine is, what was checked out, when it is, and how busy it was before."""
    busy = psutil.cpu_percent(LOOK_S)
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores,"
        f" {psutil.virtual_memory().total / BYTES_PER_GIB:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "commit": commit(),
        "begun": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "busy before": f"{busy:.0f} %" + (" (not quiet)" if busy > BUSY_PERCENT_MAX else ""),
        "a fixed piece of Python took": f"{_fixed_ms():.0f} ms",
    }


def _fixed_ms() -> float:
    """Milliseconds of CPU that a fixed piece of work takes now; the median of some rounds."""
    took = []
    for _ in range(FIXED_ROUNDS):
        began, kept = time.process_time(), {}
        for number in range(FIXED_LOOPS):
            kept[number & 1_023] = (number, str(number))
        took.append(time.process_time() - began)
    return median(took) * 1_000


def commit() -> str:
    """Name what is checked out, and say whether files differ from it; "unknown" without git."""
    head = _git("rev-parse", "--short", "HEAD")
    if head is None:
        return "unknown"
    return f"{head} with changes" if _git("status", "--porcelain") else head


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - no word of it comes from outside
            ("git", *words),  # noqa: S607 - whichever git there is
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
