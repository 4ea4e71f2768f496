"""Killing and freezing processes, with what it takes to see that it happened."""

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.row import Arena, Felt

RESTARTED_WITHIN_S = 45.0
READY_WITHIN_S = 60.0


def family(pid: int) -> list[int]:
    """Return a process and its children, parent first."""
    found = [pid]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid:
                    found.append(int(entry.name))
    return found


def send(pids: list[int], order: signal.Signals) -> None:
    """Signal processes, some of which may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, order)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Freeze a process and its children for the length of a `with`."""
    pids = family(pid)
    send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        send(pids, signal.SIGCONT)


async def replaced(arena: Arena, felt: Felt, part: str, old: int) -> None:
    """Wait until another process has taken the place of `old`, and is ready."""
    outside, system = arena.outside, arena.system

    async def other() -> bool:
        return system.pid_of(part) != old

    done = await outside.until(other, RESTARTED_WITHIN_S)
    new = system.pid_of(part)
    felt.saw(f"{part}: process {old} became {new}", proof=done and new != old)


async def ready(arena: Arena, *services: str) -> bool:
    """Wait until services answer 200 to /ready."""
    outside = arena.outside

    async def all_ready() -> bool:
        return all([await outside.answers(each, "/ready") == "200" for each in services])

    return await outside.until(all_ready, READY_WITHIN_S)
