"""Whether one more order can be taken now. A backlog is no reason to refuse; a long wait is."""

from dataclasses import dataclass

# What has been read from the socket and has no answer yet; one caller may have half of it.
IN_HAND_MAX = 1_000
COMMIT_WAIT_S_MAX = 2.0
# From this share of it on, only callers come in who have less than their part of what is in hand:
# one who floods does not shut out the others. It also leaves room for forecasts that err, since
# whoever is let in should not be sent away later, when the work is half done.
CROWDED_SHARE = 0.5
# Orders that have not ended: below this a backlog alone refuses nothing.
OPEN_MAX = 1_000_000
# A stream this full soon takes no more, and what we promise would have nowhere to go.
STREAM_FILL_MAX = 0.95
# For what a person has to mend.
LONG_S = 15.0
# A machine on which tasks wake this late, on average, has more to do than it can.
BUSY_LAG_S = 0.005
# Of those that end, so many may be begun meanwhile: what has piled up grows less, slowly.
BEGUN_SHARE = 0.95
# Well below what a caller may have to wait for a commit, or giving way would itself refuse many.
GIVE_WAY_S_MAX = 0.4
GIVE_WAY_S_FIRST = 0.01
# What a rest is multiplied by: while too many are begun, while fewer are, and while nobody is late.
GIVE_WAY_STEP, GIVE_WAY_BACK, GIVE_WAY_END = 1.3, 0.95, 0.8

RETRY = "send it again after Retry-After seconds, with the same Idempotency-Key"


@dataclass(frozen=True, slots=True)
class Limits:
    """Past these an order is refused; each is one of the limits above unless settings differ."""

    in_hand: int = IN_HAND_MAX
    commit_wait_s: float = COMMIT_WAIT_S_MAX
    open_orders: int = OPEN_MAX
    stream_fill: float = STREAM_FILL_MAX

    @property
    def of_one_caller(self) -> int:
        """How many requests one caller may have in hand."""
        return max(1, self.in_hand // 2)


@dataclass(frozen=True, slots=True)
class Load:
    """How things stand: requests in hand, whose they are, and what they wait for.

    `commit_wait_s` is what one more would wait; `away_s` how long the database has been away.
    """

    in_hand: int = 0
    of_caller: int = 0
    callers: int = 1
    commit_wait_s: float = 0.0
    away_s: float | None = None
    open_orders: int = 0
    stream_fill: float = 0.0

    def would_wait(self, limits: Limits) -> bool:
        """Whether one more of this caller's would wait too long, or keep others waiting."""
        greedy = self.of_caller >= max(1, self.in_hand / max(1, self.callers))
        share = CROWDED_SHARE if greedy else 1.0
        return self.commit_wait_s > limits.commit_wait_s * share


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not: 429 when it is the caller who asks for too much, 503 when it is we who lack."""

    status: int
    reason: str
    detail: str
    retry_after_s: float


def refusal(load: Load, limits: Limits) -> Refusal | None:
    """Judge one more order; None when it may come in. Nothing is asked of anybody: this is cheap.

    `retry_after_s` is when the reason is expected to be gone, before jitter.
    """
    wait_s = load.commit_wait_s
    found = None
    if load.away_s is not None:
        found = _ours("database", "the database is away", load.away_s)
    elif load.of_caller >= limits.of_one_caller:
        said = f"you have {load.of_caller} requests under way: wait for their answers, and"
        found = Refusal(429, "caller", f"{said} {RETRY}", wait_s)
    elif load.in_hand >= limits.in_hand:
        found = _ours("in_hand", "too many requests are under way", wait_s)
    elif load.would_wait(limits):
        found = _ours("commit_wait", f"it would wait about {wait_s:.1f} s to be committed", wait_s)
    elif load.stream_fill >= limits.stream_fill:
        found = _ours("stream_full", "the stream of orders is nearly full", LONG_S)
    elif load.open_orders >= limits.open_orders:
        found = _ours("backlog", f"{load.open_orders} orders have not ended", LONG_S)
    return found


def give_way(wait_s: float, *, lag_s: float, accepted: int, ended: int) -> float:
    """How long accepting rests before its next batch, after having rested `wait_s` for a while.

    Where the machine is what all compete for, later stages go first: else more and more orders are
    begun, and fewer and fewer end. Where they wait for something else, a gateway say, resting would
    help nobody: then tasks wake in time.
    """
    if lag_s <= BUSY_LAG_S:
        return wait_s * GIVE_WAY_END if wait_s > GIVE_WAY_S_FIRST else 0.0
    if accepted > BEGUN_SHARE * ended:
        return min(GIVE_WAY_S_MAX, GIVE_WAY_STEP * wait_s + GIVE_WAY_S_FIRST)
    return wait_s * GIVE_WAY_BACK


def _ours(reason: str, detail: str, retry_after_s: float) -> Refusal:
    return Refusal(503, reason, f"{detail}: {RETRY}", retry_after_s)
