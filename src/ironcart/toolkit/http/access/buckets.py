"""How much a caller may ask: a bucket of tokens that fills at a steady rate, one a request.

Buckets are this process's own: with N replicas behind one address a caller gets up to N times as
much.
"""

import math
from collections import OrderedDict
from typing import Final

# What may be asked at once where nothing is said: so many seconds of the rate.
BURST_S: Final = 2.0


class Bucket:
    """At most `burst` requests at once, and `rate_per_s` in the long run."""

    __slots__ = ("_at_s", "_policy", "_tokens", "burst", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self.rate_per_s, self.burst = rate_per_s, burst
        self._tokens, self._at_s = float(burst), 0.0
        window_s = math.ceil(burst / rate_per_s)
        self._policy = b'"caller";q=%d;w=%d' % (burst, window_s)

    def take(self, now_s: float) -> float:
        """Take a token; 0 when there was one, else the seconds until there will be."""
        self._fill(now_s)
        if self._tokens < 1:
            return (1 - self._tokens) / self.rate_per_s
        self._tokens -= 1
        return 0.0

    def _fill(self, now_s: float) -> None:
        grown = (now_s - self._at_s) * self.rate_per_s
        self._tokens, self._at_s = min(self._tokens + grown, float(self.burst)), now_s

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Say what is left and in how many seconds all of it is back."""
        full_s = math.ceil((self.burst - self._tokens) / self.rate_per_s)
        left = b'"caller";r=%d;t=%d' % (self._tokens, full_s)
        return [(b"ratelimit-policy", self._policy), (b"ratelimit", left)]


class Buckets:
    """Equal buckets by name, at most `buckets_max`: the one used longest ago is forgotten."""

    def __init__(self, rate_per_s: float, burst: int, buckets_max: int) -> None:
        self._rate_per_s, self._burst, self._max = rate_per_s, burst, buckets_max
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def of(self, name: str) -> Bucket:
        """The bucket of this name; a new one is full."""
        found = self._buckets.get(name)
        if found is None:
            found = self._buckets[name] = Bucket(self._rate_per_s, self._burst)
            if len(self._buckets) > self._max:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(name)
        return found
