"""What callers say in headers: the idempotency key, and how long they would wait."""

import re

from ironcart.toolkit.http.routes import Call

WAIT_S_MAX = 30.0
# RFC 7240: names are the same in capitals, a value may be quoted, what is odd is ignored.
_WAIT = re.compile(r'(?i)(?:^|,)\s*wait\s*=\s*("?)([0-9]+)\1\s*(?:$|[,;])')


def read_wait_s(request: Call) -> float:
    """Read `Prefer: wait=N`, at most `WAIT_S_MAX`; 0 when there is none."""
    match = _WAIT.search(",".join(request.all_of("prefer")))
    return min(float(match[2]), WAIT_S_MAX) if match else 0.0
