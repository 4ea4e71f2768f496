"""Idempotency keys, as every route that takes one reads them."""

import re

from ironcart.toolkit.http.problems import Problem
from ironcart.toolkit.http.routes import Call

KEY_CHARACTERS_MAX = 255
KEY_PATTERN = (
    rf'^("[\x20-\x21\x23-\x7e]{{1,{KEY_CHARACTERS_MAX}}}"|[\x21\x23-\x7e]'
    rf"([\x20-\x7e]{{0,{KEY_CHARACTERS_MAX - 2}}}[\x21-\x7e])?)\Z"
)


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
