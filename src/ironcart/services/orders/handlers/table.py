"""What an order does about each event: a total table, so nothing depends on order of arrival.

A state is what we know; callers see its `STATUS`. Facts about an order that has not been heard of
are remembered as an early state, `early:<stock>:<payment>`, until OrderCreated comes.
"""

from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta, Struct

from ironcart.events import (
    OrderCancellationRequested,
    OrderCancelled,
    OrderConfirmed,
    OrderCreated,
    OrderRejected,
    PaymentFailed,
    PaymentRefunded,
    PaymentSucceeded,
    PaymentVoided,
    RefundIssued,
    StockRejected,
    StockReserved,
)


class Cancel(Struct, frozen=True):
    """Somebody asks that the order be undone; `by` is who, where that is not who placed it."""

    by: str | None = None


EVENTS: Final[tuple[type, ...]] = (
    OrderCreated,
    Cancel,
    StockReserved,
    StockRejected,
    PaymentSucceeded,
    PaymentFailed,
    PaymentVoided,
    PaymentRefunded,
    RefundIssued,
)

# One row a state, one column an event, in the order of EVENTS; `=` stays, `!` stays and is a
# contradiction that a person should hear of. A late charge on a dead order is sent back.
_ROWS: Final = """
pending        = cancelling reserved rejected_stock confirmed      rejected_pay   cancelled_void cancelled_back confirmed
reserved       = cancelling =        !              confirmed      rejected_pay   cancelled_void cancelled_back confirmed
cancelling     = =          =        =              =              cancelled_void cancelled_void cancelled_back =
confirmed      = =          =        =              =              !              !              !              =
rejected_stock = =          =        =              rejected_late  =              =              =              =
rejected_pay   = =          =        =              rejected_late  =              =              =              =
rejected_late  = =          =        =              =              =              =              =              =
cancelled_void = =          =        =              cancelled_late =              =              cancelled_back =
cancelled_back = =          =        =              =              =              =              =              =
cancelled_late = =          =        =              =              =              =              =              =
"""  # noqa: E501 - a table is read by its columns

STATUS: Final[Mapping[str, str]] = {
    "pending": "pending",
    "reserved": "reserved",
    "cancelling": "cancelling",
    "confirmed": "confirmed",
    "rejected_stock": "rejected",
    "rejected_pay": "rejected",
    "rejected_late": "rejected",
    "cancelled_void": "cancelled",
    "cancelled_back": "cancelled",
    "cancelled_late": "cancelled",
}
STATUSES: Final = tuple(dict.fromkeys(STATUS.values()))
# As documents name it.
Status = Annotated[str, Meta(extra_json_schema={"enum": list(STATUSES)})]
TERMINAL: Final = frozenset({"confirmed", "rejected", "cancelled"})

# What is said on entering a state.
_SAYS: Final[Mapping[str, type[Struct]]] = {
    "cancelling": OrderCancellationRequested,
    "confirmed": OrderConfirmed,
    "rejected_stock": OrderRejected,
    "rejected_pay": OrderRejected,
    "rejected_late": OrderCancellationRequested,
    "cancelled_void": OrderCancelled,
    "cancelled_back": OrderCancelled,
    "cancelled_late": OrderCancellationRequested,
}

# Early facts: what each one tells; a refund outranks what it refunds, else the first one stands.
_STOCK: Final[Mapping[type, str]] = {StockReserved: "res", StockRejected: "rej"}
_PAYMENT: Final[Mapping[type, str]] = {
    PaymentSucceeded: "ok",
    PaymentFailed: "fail",
    PaymentVoided: "void",
    PaymentRefunded: "back",
    RefundIssued: "ok",
}
_RANK: Final = {"-": 0, "ok": 1, "fail": 1, "void": 1, "back": 2}
_EARLY_STATES: Final = [f"early:{s}:{p}" for s in ("-", "res", "rej") for p in _RANK]


def _remember(state: str, event: type) -> str:
    """Add one more early fact to what is known."""
    _, stock, payment = state.split(":")
    if event in _STOCK and stock == "-":
        stock = _STOCK[event]
    if event in _PAYMENT and _RANK[_PAYMENT[event]] > _RANK[payment]:
        payment = _PAYMENT[event]
    return f"early:{stock}:{payment}"


def _recall(state: str) -> str:
    """Where an order begins, given the facts that came before it."""
    _, stock, payment = state.split(":")
    by_payment = {
        "ok": "confirmed",
        "fail": "rejected_pay",
        "void": "cancelled_void",
        "back": "cancelled_back",
    }
    by_stock = {"-": "pending", "res": "reserved", "rej": "rejected_stock"}
    return by_payment.get(payment) or by_stock[stock]


def _table() -> dict[tuple[str, type], str]:
    found: dict[tuple[str, type], str] = {}
    for row in _ROWS.strip().splitlines():
        state, *steps = row.split()
        for event, step in zip(EVENTS, steps, strict=True):
            found[state, event] = state if step in "=!" else step
    for state in _EARLY_STATES:
        for event in EVENTS:
            found[state, event] = _remember(state, event)
        found[state, OrderCreated] = _recall(state)
        found[state, Cancel] = state
    return found


UNHEARD_OF: Final = "early:-:-"
TABLE: Final[Mapping[tuple[str, type], str]] = _table()
CONTRADICTIONS: Final = frozenset(
    (row.split()[0], event)
    for row in _ROWS.strip().splitlines()
    for event, step in zip(EVENTS, row.split()[1:], strict=True)
    if step == "!"
)


def says(before: str, after: str) -> type[Struct] | None:
    """What entering `after` has to be told as, if anything."""
    if after == before or (before, after) == ("cancelled_void", "cancelled_back"):
        return None  # The second: the money of a late charge is back, the order had ended before.
    return _SAYS.get(after)
