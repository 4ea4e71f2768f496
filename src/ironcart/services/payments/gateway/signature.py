"""Whether a webhook is the gateway's own: Stripe's scheme, `t=<unix seconds>,v1=<hex HMAC>`."""

import hashlib
import hmac
import re
from collections.abc import Sequence

TOLERANCE_S = 300
SIGNATURES_MAX = 16
_TIME = re.compile(r"[0-9]{1,12}\Z")


def is_signed(header: str, body: bytes, secrets: Sequence[str], now_s: float) -> bool:
    """Say whether one of the secrets signed these raw bytes within `TOLERANCE_S` of `now_s`.

    Takes the same time whichever secret or signature fits.
    """
    pairs = [part.strip().partition("=") for part in header.split(",", SIGNATURES_MAX + 1)]
    times = [value for name, _, value in pairs if name == "t"]
    given = [value.encode() for name, _, value in pairs if name == "v1"]
    if len(times) != 1 or not _TIME.match(times[0]) or not given or len(given) > SIGNATURES_MAX:
        return False
    signed = times[0].encode() + b"." + body
    found = False
    for secret in secrets:
        expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode()
        for each in given:
            found |= hmac.compare_digest(expected, each)
    return found and abs(now_s - int(times[0])) <= TOLERANCE_S
