"""Checkpoints in a folder: a file a day, a line each, added to and synced, never written over."""

import asyncio
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from ironcart.services.audit.gateway import Sheet
from ironcart.toolkit.outcomes import Unavailable

LOCK_FILE = "lock"
SUFFIX = ".jsonl"
READ_MAX = 10_000
# Holds the last line of a file, and what a crash has left after it.
TAIL_BYTES = 64 * 1024

P = ParamSpec("P")
T = TypeVar("T")


class Folder:
    """A folder on a disk of its own; replicas on several machines need one that they share."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def last(self, number_max: int) -> int:
        """The highest number that is there, up to `number_max`."""
        number, _ = await _aside(self._last)
        return min(number, number_max)

    async def after(self, number: int) -> list[str]:
        """Some of the lines above a number, oldest first."""
        return await _aside(self._after, number)

    async def add(self, sheets: Sequence[Sheet]) -> int | None:
        """Add these after what is there, synced before it returns; returns where it ends then.

        None when other bytes are there, or when they would not come last.
        """
        return await _aside(self._add, sheets)

    async def close(self) -> None:
        """Nothing is kept open."""

    def _files(self) -> list[Path]:
        try:
            return sorted(file for file in self._path.iterdir() if file.suffix == SUFFIX)
        except FileNotFoundError:
            return []  # Made when the first checkpoint comes.

    def _last(self) -> tuple[int, str]:
        for file in reversed(self._files()):
            # The whole file, should its end be nothing but what somebody else has left there.
            for tail_bytes in (TAIL_BYTES, None):
                for line in reversed(_lines(file, tail_bytes)):
                    if number := _number(line):
                        return number, line
        return 0, ""

    def _after(self, number: int) -> list[str]:
        found: list[list[str]] = []
        for file in reversed(self._files()):
            lines = _lines(file)
            found.append([line for line in lines if _number(line) > number])
            if any(0 < _number(line) <= number for line in lines):
                break
        # A line may be there twice where a lock did not hold.
        return list(dict.fromkeys(line for lines in reversed(found) for line in lines))[:READ_MAX]

    def _add(self, sheets: Sequence[Sheet]) -> int | None:
        if sheets[0].number == 1:
            # Only for the first: later, a folder that is not there is a volume that is away.
            self._path.mkdir(parents=True, exist_ok=True)
        with self._alone():
            last, line = self._last()
            if any(sheet.number == last and sheet.line != line for sheet in sheets):
                return None
            fresh = [sheet for sheet in sheets if sheet.number > last]
            if not fresh or fresh[0].number > last + 1:
                return last
            if any(file.stem > fresh[0].day for file in self._files()):
                return None  # Days never go back: a file of a later one is not ours.
            for day in sorted({sheet.day for sheet in fresh}):
                lines = [sheet.line for sheet in fresh if sheet.day == day]
                _append(self._path / f"{day}{SUFFIX}", "".join(f"{line}\n" for line in lines))
            return fresh[-1].number

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time looks for the end and writes there."""
        lock = os.open(self._path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


async def _aside(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Off the loop: a disk may take its time."""
    try:
        return await asyncio.to_thread(work, *arguments, **named)
    except OSError as error:
        raise Unavailable(f"the folder of checkpoints: {error}") from error


def _lines(file: Path, tail_bytes: int | None = None) -> list[str]:
    """The whole lines of a file, or those of its end."""
    with file.open("rb") as open_file:
        size = open_file.seek(0, os.SEEK_END)
        begin = max(0, size - tail_bytes) if tail_bytes is not None else 0
        open_file.seek(begin)
        lines = open_file.read().decode(errors="replace").split("\n")[:-1]
    return lines[1:] if begin else lines


def _number(line: str) -> int:
    """The number of a checkpoint; 0 for what a crash has left of one, or somebody else."""
    try:
        number = json.loads(line)["number"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return 0
    return number if isinstance(number, int) and number > 0 else 0


def _append(file: Path, text: str) -> None:
    is_new = not file.exists()
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    with os.fdopen(descriptor, "rb+", buffering=0) as open_file:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            # A crash has left the beginning of a line, which is written whole below it.
            text = "\n" + text
        data = memoryview(text.encode())
        while data:
            data = data[open_file.write(data) :]
        os.fsync(descriptor)
    if is_new:
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
