"""An append-only file of JSON lines: one write() a line, so it survives the process's death."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

READ_CHUNK_BYTES = 8192


class JournalError(Exception):
    """The file cannot be used; the message says what to do."""


class Journal:
    """One open file. A torn last line (the process died while writing) is cut off on opening.

    Not fsynced: lines survive `kill -9`, not a power cut. A second opener is refused.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            message = f"{path} is in use by another sandbox; stop it or choose another --data"
            raise JournalError(message) from None
        self._end = self._cut_torn_line()

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Every line with its offset, in order; read once, before the first append."""
        offset = 0
        with self._path.open("rb") as file:
            for line in file:
                yield offset, line
                offset += len(line)

    def append(self, record: bytes) -> int:
        """Write one record (JSON, one line) and return its offset; all of it or an OSError."""
        line = record + b"\n"
        offset = self._end
        try:
            written = os.write(self._fd, line)
        except OSError:
            os.ftruncate(self._fd, offset)
            raise
        if written != len(line):
            os.ftruncate(self._fd, offset)
            raise OSError(f"{self._path}: wrote {written} of {len(line)} bytes; the disk is full")
        self._end = offset + written
        return offset

    def read(self, offset: int) -> bytes:
        """The record that `append` put at this offset."""
        record = bytearray()
        while True:
            chunk = os.pread(self._fd, READ_CHUNK_BYTES, offset + len(record))
            head, newline, _ = chunk.partition(b"\n")
            record += head
            if newline or not chunk:
                return bytes(record)

    def close(self) -> None:
        """Close the file and give up its lock."""
        os.close(self._fd)

    def _cut_torn_line(self) -> int:
        end = size = os.fstat(self._fd).st_size
        while end > 0:
            start = max(0, end - READ_CHUNK_BYTES)
            newline = os.pread(self._fd, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end != size:
            os.ftruncate(self._fd, end)
        return end
