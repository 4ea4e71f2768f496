"""The generator's own log: one JSON line for each request before it is sent, one for each answer.

A line is handed to the kernel before `write` returns, so a killed generator loses none of them.
A thread calls fsync at most every 50 ms for all lines since: a power cut may cost that much.
"""

import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

FSYNC_INTERVAL_S = 0.05


class LoadLog:
    """An append-only file `<utc>-<pid>.jsonl`; close it to have everything on the disk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self.path = folder / f"{started}-{os.getpid()}.jsonl"
        self._encode = msgspec.json.Encoder().encode
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._syncer = threading.Thread(target=self._sync, name="load-log-fsync", daemon=True)
        self._syncer.start()

    def write(self, record: dict[str, Any]) -> None:
        """Append one line; raises `OSError` when the disk does not take it."""
        line = memoryview(self._encode(record) + b"\n")
        while line:
            line = line[os.write(self._file, line) :]
        self._dirty.set()

    def close(self) -> None:
        """Put everything on the disk and close the file."""
        self._closing.set()
        self._dirty.set()
        self._syncer.join()
        os.fsync(self._file)
        os.close(self._file)

    def _sync(self) -> None:
        while not self._closing.is_set():
            self._dirty.wait()
            self._dirty.clear()
            os.fdatasync(self._file)
            self._closing.wait(FSYNC_INTERVAL_S)
