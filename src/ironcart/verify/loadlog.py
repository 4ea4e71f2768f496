"""The load generator's logs, DIR/load/*.jsonl: what was sent under each key, and what came back.

A last line cut off by a crash is skipped: its request was never sent, or its answer never counted.
"""

from pathlib import Path
from typing import Any

from ironcart.verify.facts import Attempt, CannotReadError, LoadLog
from ironcart.verify.wire import basket_of_body, loads


def log_files(data: Path) -> list[Path]:
    """Return the load logs under a data folder, oldest first."""
    return sorted((data / "load").glob("*.jsonl"))


def read_logs(data: Path) -> LoadLog:
    """Read every load log; raises `CannotReadError` naming the file and line it stumbles over."""
    log = LoadLog()
    for path in log_files(data):
        log.files += 1
        try:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.endswith(b"\n"):
                        break
                    try:
                        _add(log, loads(line))
                    except (ValueError, KeyError, TypeError) as error:
                        raise CannotReadError(f"{path}:{number}: {error!r}") from None
        except OSError as error:
            raise CannotReadError(f"{path}: {error.strerror}") from None
    return log


def _add(log: LoadLog, line: dict[str, Any]) -> None:
    kind = line["kind"]
    if kind == "run":
        log.prefixes.append(line["key_prefix"])
        return
    attempt = log.attempts.setdefault(line["key"], Attempt())
    other_body = line.get("other_body", False)
    if kind == "sent":
        if not other_body:
            attempt.sends += 1
            if "body" in line:
                attempt.basket = basket_of_body(line["body"])
    elif kind == "answer":
        status = line["status"]
        if other_body:
            attempt.other_body.append(status)
        elif status == 202:
            attempt.order_ids.append(line["order_id"])
            attempt.answers.append(line["answer_sha256"])
        elif 400 <= status < 500:
            attempt.refused += 1
