"""A launcher, run as a script: becomes the given program, which then dies with its parent.

It runs in isolated mode as whoever started it and needs nothing but the standard library.
"""

import contextlib
import ctypes
import os
import sys
import time

PR_SET_PDEATHSIG = 1
WATCH_INTERVAL_S = 0.5
KEEP_ACCOUNT = -1
NOT_STARTED = 127

BY_KERNEL = "kernel"
BY_WATCHER = "watcher"


def main(arguments: list[str]) -> None:
    """Become `PROGRAM ARGS...` of `PARENT SIGNAL UID GID PATIENT GUARD PROGRAM ARGS...`."""
    parent, death_signal, uid, gid, patient = (int(argument) for argument in arguments[:5])
    guard, program = arguments[5], arguments[6:]
    if patient and hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):  # A sandbox may forbid it: it goes on as before.
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if uid != KEEP_ACCOUNT:
        os.chdir("/")
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if guard == BY_KERNEL:
        # After setuid, which would clear it; exec keeps it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal)
    else:
        _start_watcher(parent, death_signal)
    if os.getppid() != parent:
        sys.exit(NOT_STARTED)
    try:
        os.execv(program[0], program)  # noqa: S606 - no shell is the point
    except OSError as error:
        sys.stderr.write(f"cannot start {program[0]}: {error.strerror}\n")
        sys.exit(NOT_STARTED)


def _start_watcher(parent: int, death_signal: int) -> None:
    """Leave a process behind that signals this one when `parent` is gone (no kernel does it)."""
    program = os.getpid()
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    if os.fork():
        os._exit(0)
    while _lives(parent):
        if not _lives(program):
            os._exit(0)
        time.sleep(WATCH_INTERVAL_S)
    with contextlib.suppress(OSError):
        os.kill(program, death_signal)
    os._exit(0)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
