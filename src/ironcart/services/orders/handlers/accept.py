"""Accept orders, as many as have come together, in one transaction; and cancel them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import msgspec

from ironcart.events import OrderCreated, money
from ironcart.services.orders.handlers.advance import step
from ironcart.services.orders.handlers.check import CurrencyCode, Draft
from ironcart.services.orders.handlers.table import TERMINAL, Cancel, Status
from ironcart.services.orders.store import Key, Order, Store
from ironcart.toolkit.database import Database
from ironcart.toolkit.envelope import Name, encode_json
from ironcart.toolkit.history import Cause, Commit, History
from ironcart.toolkit.outcomes import Fact
from ironcart.toolkit.vault import Vault

PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Request:
    """One valid POST /orders; `key` is its idempotency key, if it has one."""

    draft: Draft
    caller: str
    key: str | None
    cause: Cause


class Accepted(msgspec.Struct, frozen=True):
    """The answer to an accepted order."""

    order_id: Name
    status: Status
    amount: Decimal
    currency: CurrencyCode


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request: the order, and the answer as it was first given."""

    order_id: str
    body: bytes
    replayed: bool = False


class KeyReused(msgspec.Struct, frozen=True):
    """The key stands for another body."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    request: Request
    fingerprint: bytes
    order: Order
    fact: Fact
    body: bytes

    def as_key(self) -> Key:
        assert self.request.key is not None
        caller, key = self.request.caller, self.request.key
        return Key(caller, key, self.fingerprint, self.order.order_id, self.body)


def prepare(request: Request, order_id: str, contact: str | None) -> _Prepared:
    """Make everything that will be written if the request's key is free."""
    draft = request.draft
    amount = money(draft.amount_minor, draft.currency)
    created = OrderCreated(
        order_id,
        draft.customer_id,
        amount,
        draft.currency,
        draft.items,
        draft.payment_method,
        contact,
    )
    order = Order(
        order_id=order_id,
        caller=request.caller,
        customer_id=draft.customer_id,
        state=PENDING,
        status=PENDING,
        amount_minor=draft.amount_minor,
        currency=draft.currency,
        items=encode_json(draft.items),
        payment_method=draft.payment_method,
        contact=contact,
        reason=None,
        version=1,
        trace_id=request.cause.trace_id,
    )
    # The same order written otherwise, with other white space say, is the same request.
    fingerprint = hashlib.sha256(encode_json(draft)).digest()
    body = encode_json(Accepted(order_id, PENDING, amount, draft.currency))
    return _Prepared(request, fingerprint, order, Fact(order_id, 1, created), body)


async def accept(
    requests: Sequence[Request],
    *,
    database: Database,
    vault: Vault,
    history: History,
    publish: Callable[[Commit], object],
    new_id: Callable[[], str],
) -> list[Answer | KeyReused]:
    """Accept orders: keys, orders and facts in one transaction; publishing needs no waiting for."""
    contacts = await _sealed(requests, vault)
    prepared = [
        prepare(request, new_id(), contact)
        for request, contact in zip(requests, contacts, strict=True)
    ]
    first: dict[tuple[str, str], _Prepared] = {}
    for each in prepared:
        if each.request.key is not None:
            first.setdefault((each.request.caller, each.request.key), each)
    commit: Commit | None = None
    async with database.transaction() as connection:
        store = Store(connection)
        free = await store.claim([each.as_key() for each in first.values()]) if first else set()
        taken = first.keys() - free
        known = await store.keys(taken) if taken else {}
        known |= {key: first[key].as_key() for key in free}
        new = [each for each in prepared if _is_new(each, first, free)]
        if new:
            await store.add([each.order for each in new])
            facts = [(each.fact, each.request.cause) for each in new]
            commit = await history.record(connection, facts)
    if commit is not None:
        publish(commit)
    return [_answer(each, known, _is_new(each, first, free)) for each in prepared]


def _is_new(
    each: _Prepared, first: dict[tuple[str, str], _Prepared], free: set[tuple[str, str]]
) -> bool:
    if each.request.key is None:
        return True
    key = (each.request.caller, each.request.key)
    return key in free and first[key] is each


def _answer(each: _Prepared, known: dict[tuple[str, str], Key], is_new: bool) -> Answer | KeyReused:
    if each.request.key is None or is_new:
        return Answer(each.order.order_id, each.body)
    kept = known[each.request.caller, each.request.key]
    if kept.fingerprint != each.fingerprint:
        return KeyReused()
    return Answer(kept.order_id, kept.answer, replayed=True)


async def _sealed(requests: Sequence[Request], vault: Vault) -> list[str | None]:
    reachable = [
        (request.draft.customer_id, request.draft.contact)
        for request in requests
        if request.draft.contact is not None
    ]
    sealed = iter(await vault.encrypt(reachable) if reachable else [])
    return [None if request.draft.contact is None else next(sealed) for request in requests]


async def cancel(
    order_id: str,
    *,
    database: Database,
    history: History,
    publish: Callable[[Commit], object],
    cause: Cause,
    reason: str,
) -> Order | None:
    """Ask that an order be undone; None when there is none.

    Idempotent. The order that is returned says what came of it: cancelling or cancelled, or, where
    it was too late, confirmed or rejected.
    """
    async with database.transaction() as connection:
        store = Store(connection)
        order = (await store.lock([order_id])).get(order_id)
        if order is None or order.status is None:
            return None
        if order.status in TERMINAL:
            return order
        after, fact = step(order, Cancel(), reason)
        commit: Commit | None = None
        if fact is not None:
            await store.move([after])
            commit = await history.record(connection, [(fact, cause)])
        found = await store.find(order_id)
    if commit is not None:
        publish(commit)
    return found
