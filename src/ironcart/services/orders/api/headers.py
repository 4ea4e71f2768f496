"""What callers say in headers: the idempotency key, and how long they would wait."""

import re

from ironcart.toolkit.http import Problem
from ironcart.toolkit.http.routes import Call

KEY_CHARACTERS_MAX = 255
WAIT_S_MAX = 30.0
KEY_PATTERN = (
    rf'^("[\x20-\x21\x23-\x7e]{{1,{KEY_CHARACTERS_MAX}}}"|[\x21\x23-\x7e]'
    rf"([\x20-\x7e]{{0,{KEY_CHARACTERS_MAX - 2}}}[\x21-\x7e])?)\Z"
)
# RFC 7240: names are the same in capitals, a value may be quoted, what is odd is ignored.
_WAIT = re.compile(r'(?i)(?:^|,)\s*wait\s*=\s*("?)([0-9]+)\1\s*(?:$|[,;])')


def read_key(request: Call) -> str | None:
    """Read Idempotency-Key, quoted or bare alike; None when there is none."""
    given = request.headers.get("idempotency-key")
    if given is None:
        return None
    given = given.strip(" \t")
    if not re.match(KEY_PATTERN, given):
        raise Problem(
            400, f"Idempotency-Key must be 1 to {KEY_CHARACTERS_MAX} printable characters"
        )
    return given[1:-1] if given.startswith('"') else given


def read_wait_s(request: Call) -> float:
    """Read `Prefer: wait=N`, at most `WAIT_S_MAX`; 0 when there is none."""
    match = _WAIT.search(",".join(request.headers.getall("prefer", [])))
    return min(float(match[2]), WAIT_S_MAX) if match else 0.0
