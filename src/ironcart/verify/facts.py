"""What the collectors hand to the checks: plain records, compact enough for a million events."""

from dataclasses import dataclass, field

SERVICES = ("orders", "inventory", "payments", "notifications", "audit")
DEAD_LETTERS = "DEADLETTERS"
OWNERS = {
    "ORDERS": "orders",
    "INVENTORY": "inventory",
    "PAYMENTS": "payments",
    "NOTIFICATIONS": "notifications",
}
STREAMS = (*OWNERS, DEAD_LETTERS)
TERMINAL = frozenset({"confirmed", "rejected", "cancelled"})

Lines = tuple[tuple[str, int], ...]
Money = tuple[int, str]


class CannotReadError(Exception):
    """A source of facts is missing or unreadable; the message says which and what to do."""


@dataclass(slots=True, eq=False)
class Event:
    """One message of a stream; `valid` says that it is an event, `owned` that a service keeps it.

    `id` and `cause` are 16 bytes, empty when absent; `digest` is the SHA-256 of the body. What a
    check needs of the data lies in `lines`, `money`, `delta`, `basket` or `notice`, by type. What
    is `made_good` says of stock what an adjustment that was lost with a database had said before.
    """

    stream: str
    seq: int
    subject: str
    digest: bytes
    id: bytes = b""
    valid: bool = False
    type: str = ""
    aggregate: str = ""
    version: int = 0
    cause: bytes = b""
    traced: bool = False
    flaw: str = ""
    lines: Lines = ()
    money: Money | None = None
    delta: int = 0
    made_good: bool = False
    basket: bytes = b""
    notice: str = ""
    owned: bool = False
    recorded: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class StreamFacts:
    """One stream as the broker describes it, and every message that could be read from it."""

    name: str
    first_seq: int
    last_seq: int
    messages: int
    events: list[Event] = field(default_factory=list)


@dataclass(slots=True)
class DeadLetter:
    """One dead letter: subject, why, and the id of the event it carries (empty: none).

    `origin` is the message that was set aside, as (service, stream, sequence); `resolved` says that
    a person has replayed or discarded it, `repeated` that it is a copy of one before it.
    """

    subject: str
    reason: str
    event_id: bytes
    seq: int = 0
    origin: tuple[str, str, int] = ("", "", 0)
    resolved: bool = False
    repeated: bool = False


@dataclass(slots=True)
class Attempt:
    """One idempotency key of the load generator: what was sent under it and what came back.

    `basket` is empty until the request was logged. `refused` counts answers of 4xx; `other_body`
    holds the statuses answered to a deliberately different body under the same key.
    """

    basket: bytes = b""
    sends: int = 0
    order_ids: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    refused: int = 0
    other_body: list[int] = field(default_factory=list)


@dataclass(slots=True)
class LoadLog:
    """All load logs of a folder: attempts by key, and the prefixes the generator's keys have."""

    files: int = 0
    prefixes: list[str] = field(default_factory=list)
    attempts: dict[str, Attempt] = field(default_factory=dict)


@dataclass(slots=True)
class Order:
    """One row of orders.orders whose order is known, not only facts about it."""

    order_id: str
    status: str
    money: Money
    basket: bytes
    lines: Lines
    contact: bool


@dataclass(slots=True)
class Stock:
    """One row of inventory.stock."""

    on_hand: int
    reserved: int


@dataclass(slots=True)
class Payment:
    """One row of payments.payments, in minor units."""

    order_id: str
    state: str
    money: Money
    intent_id: str
    refunded: int


@dataclass(slots=True)
class Charge:
    """One intent in the gateway's ledger, in minor units."""

    id: str
    order_id: str
    amount: int
    currency: str
    captured: int
    refunded: int


@dataclass(slots=True)
class Notification:
    """One row of notifications.notifications."""

    order_id: str
    state: str
    message_id: str


@dataclass(slots=True)
class Consumer:
    """One durable consumer: how far behind it is, and how often it would deliver at most."""

    stream: str
    name: str
    pending: int
    ack_pending: int
    max_deliver: int
    redelivered: int = field(default=0, compare=False)


@dataclass(slots=True)
class Backlog:
    """What is still under way, as counts by service; all zero means quiet."""

    open_orders: int = 0
    consumers: list[Consumer] = field(default_factory=list)
    unpublished: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    last_seqs: dict[str, int] = field(default_factory=dict)

    def reasons(self) -> list[str]:
        """Say in words what is under way; empty when the system is quiet."""
        found = []
        if self.open_orders:
            found.append(f"{self.open_orders:,} orders are not terminal")
        found += [
            f"{consumer.name} has {consumer.pending:,} pending and {consumer.ack_pending:,} "
            f"unacknowledged on {consumer.stream}"
            for consumer in self.consumers
            if consumer.pending or consumer.ack_pending
        ]
        for what, counts in (("events unpublished", self.unpublished), ("jobs open", self.jobs)):
            found += [f"{service} has {n:,} {what}" for service, n in counts.items() if n]
        return found


@dataclass(slots=True)
class Leftovers:
    """What should not lie about after the system came to rest, as counts by service."""

    old_jobs: dict[str, int] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    early_orders: list[str] = field(default_factory=list)
    overdue_jobs: dict[str, int] = field(default_factory=dict)
    unpublished_age_s: dict[str, float] = field(default_factory=dict)
    waiting_behind: dict[str, int] = field(default_factory=dict)
    webhooks_tried_again: int = 0


@dataclass(slots=True)
class Facts:
    """Everything collected for one judgement; histories and the audit trail are judged apart.

    `moving` says that work goes on while we look: what is only late is then no fault. The tables
    are one snapshot, so they agree with the events their services own even then; `pending` are the
    owned events that had not reached the stream.
    """

    moving: bool = False
    pending: dict[str, list[Event]] = field(default_factory=dict)
    log: LoadLog = field(default_factory=LoadLog)
    log_after: LoadLog = field(default_factory=LoadLog)
    streams: dict[str, StreamFacts] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    orders: dict[str, Order] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    stock: dict[str, Stock] = field(default_factory=dict)
    reservations: dict[str, str] = field(default_factory=dict)
    payments: dict[str, Payment] = field(default_factory=dict)
    charges: list[Charge] = field(default_factory=list)
    notifications: list[Notification] = field(default_factory=list)
    mail: dict[str, list[str]] = field(default_factory=dict)
    backlog: Backlog = field(default_factory=Backlog)
    leftovers: Leftovers = field(default_factory=Leftovers)
    # Samples of the services' own metrics by service, then by name and labels as they are written.
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    # Seconds from accepted to ended, of half the orders, of 99 in 100, and of all.
    ended_within_s: tuple[float, float, float] | None = None

    def owned(self, stream: str) -> list[Event]:
        """Return the events of a stream that its owner keeps, each once, in stream order."""
        published = [event for event in self.events(stream) if event.owned]
        return published + self.pending.get(stream, [])

    def events(self, stream: str) -> list[Event]:
        """Return every message of a stream, in stream order; none when it does not exist."""
        facts = self.streams.get(stream)
        return facts.events if facts else []
