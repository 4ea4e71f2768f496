"""One JSON object a line on stderr: start, changes of faults, warnings; nothing per request."""

import logging
import sys
from datetime import UTC, datetime

import msgspec


def log(level: str, message: str, **fields: object) -> None:
    """Write one line."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"level": level, "time": now, "service": "sandbox", "msg": message, **fields}
    sys.stderr.write(msgspec.json.encode(line).decode() + "\n")
    sys.stderr.flush()


class _JsonHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = repr(record.exc_info[1])
        log(record.levelname.lower(), record.getMessage(), **fields)


def take_over_logging() -> None:
    """Have the warnings of the libraries come out as our lines."""
    logging.basicConfig(level=logging.WARNING, handlers=[_JsonHandler()], force=True)
