"""Tables with one entry changed: what the model notices, and what nobody could."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

from models.explorer import explore
from models.saga.story import Saga
from models.saga.tables import INVENTORY, ORDERS, PAYMENTS, Effect, Entry, Tables, tables


class AsItIs(NamedTuple):
    """What there is to be seen of the tables as they are."""

    used: frozenset[Entry]  # By some interleaving, a repeat included.
    ends: frozenset[str]


@cache
def as_it_is(*, by_http: bool) -> AsItIs:
    """The tables as they are, over every interleaving."""
    saga = Saga("as it is", by_http=by_http)
    report = explore(saga)
    return AsItIs(frozenset(saga.used), frozenset(report.ends))


def reached() -> frozenset[Entry]:
    """Entries that some interleaving uses, a repeat included."""
    return as_it_is(by_http=True).used | as_it_is(by_http=False).used


def active() -> list[Entry]:
    """Entries that do something, in order."""
    return sorted(entry for entry, does in tables().items() if does != (Effect(entry.state),))


def caught(over: Tables) -> str | None:
    """What a change breaks, or which end it makes impossible; None when nobody notices."""
    for by_http in (True, False):
        if as_it_is(by_http=by_http).used.isdisjoint(over):
            continue  # Nothing that happens then is changed.
        report = explore(Saga("changed", by_http=by_http, over=over), first_only=True)
        if report.broken:
            return next(iter(report.broken))
        if missing := ends(by_http=by_http) - set(report.ends):
            return f"never ends as {min(missing)}"
    return None


def ends(*, by_http: bool) -> frozenset[str]:
    """Every end that an order can come to."""
    return as_it_is(by_http=by_http).ends


def ignored() -> Iterator[tuple[Entry, Tables]]:
    """Yield each active entry that is ever used, with the tables in which it does nothing."""
    for entry in active():
        if entry in reached():
            yield entry, {entry: (Effect(entry.state),)}


# Plausible mistakes, each of which somebody has made somewhere.
DEFECTS: Mapping[str, Tables] = {
    "orders forgets facts about an order it does not know yet": {
        Entry(ORDERS, "early:-:-", fact): (Effect("early:-:-"),)
        for fact in ("StockReserved", "StockRejected", "PaymentSucceeded", "PaymentFailed")
    },
    "PaymentFailed at the decline, and nobody looks again": {
        Entry(PAYMENTS, "charging", "Declined"): (Effect("failed", ("PaymentFailed",)),),
        Entry(PAYMENTS, "failed", "Succeeded"): (Effect("failed"),),
    },
    "an operator's refund ends a cancellation": {
        Entry(ORDERS, "cancelling", "RefundIssued"): (
            Effect("cancelled_back", ("OrderCancelled",)),
        ),
    },
    "inventory leaves no tombstone": {
        Entry(INVENTORY, "none", "OrderCancelled"): (Effect("none"),),
    },
    "payments leaves no tombstone": {
        Entry(PAYMENTS, "none", "OrderCancellationRequested"): (
            Effect("none", ("PaymentVoided",)),
        ),
    },
    "an order is cancelled at once, without payments": {
        Entry(ORDERS, state, "Cancel"): (
            Effect("cancelled_void", ("OrderCancellationRequested", "OrderCancelled")),
        )
        for state in ("pending", "reserved")
    },
    "StockRejected ends a cancellation": {
        Entry(ORDERS, "cancelling", "StockRejected"): (
            Effect("rejected_stock", ("OrderRejected",)),
        ),
    },
    "PaymentSucceeded confirms an order that is being cancelled": {
        Entry(ORDERS, "cancelling", "PaymentSucceeded"): (
            Effect("confirmed", ("OrderConfirmed",)),
        ),
    },
    "a late charge on a dead order is kept": {
        Entry(ORDERS, state, "PaymentSucceeded"): (Effect(state),)
        for state in ("cancelled_void", "rejected_stock", "rejected_pay")
    },
    "PaymentVoided although the capture had won": {
        Entry(PAYMENTS, "voiding", "Succeeded"): (Effect("voided", ("PaymentVoided",)),),
    },
    "PaymentSucceeded after PaymentFailed": {
        Entry(PAYMENTS, "failed", "Succeeded"): (Effect("succeeded", ("PaymentSucceeded",)),),
        Entry(ORDERS, "rejected_pay", "PaymentSucceeded"): (Effect("rejected_pay"),),
    },
    "a cancellation during an operator's refund is ignored": {
        Entry(PAYMENTS, "op_refunding", "OrderCancellationRequested"): (Effect("op_refunding"),),
    },
}


# Nobody outside could tell that these do nothing.
UNOBSERVABLE: Mapping[Entry, str] = {
    Entry(ORDERS, "pending", "StockReserved"): "only the status that callers see says it",
    Entry(ORDERS, "reserved", "RefundIssued"): "PaymentSucceeded comes too, and says more",
    Entry(ORDERS, "cancelled_void", "PaymentRefunded"): "it had ended; the reason is not told anew",
    Entry(ORDERS, "early:-:ok", "StockReserved"): "what is known of the money says more",
    Entry(ORDERS, "early:-:back", "StockReserved"): "what is known of the money says more",
    Entry(ORDERS, "early:res:fail", "PaymentRefunded"): "the end of a failed charge is as good",
}
