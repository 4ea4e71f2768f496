"""Accept orders, as many as have come together, in one transaction."""

import hashlib
from collections.abc import Callable, Sequence
from decimal import Decimal

import msgspec
from msgspec import Struct

from ironcart.events import OrderCreated, Requested, money
from ironcart.services.orders.handlers.check import CurrencyCode, Draft
from ironcart.services.orders.handlers.table import Status
from ironcart.services.orders.store import REMEMBERED, Key, Order, Store
from ironcart.toolkit.database import Database
from ironcart.toolkit.envelope import Name, encode_json
from ironcart.toolkit.history import Cause, Commit, History
from ironcart.toolkit.outcomes import Fact, Refused
from ironcart.toolkit.vault import Contact, Sealed, Vault

PENDING = "pending"


class Request(Struct, frozen=True):
    """One valid POST /orders; `key` is its idempotency key, if it has one.

    `named` says that the caller was asked for a key, and so is somebody.
    """

    draft: Draft
    caller: str
    key: str | None
    cause: Cause
    named: bool = False


class Accepted(msgspec.Struct, frozen=True):
    """The answer to an accepted order."""

    order_id: Name
    status: Status
    amount: Decimal
    currency: CurrencyCode


class Answer(Struct, frozen=True):
    """What became of a request: the order, and the answer as it was first given."""

    order_id: str
    body: bytes
    replayed: bool = False


class KeyReused(msgspec.Struct, frozen=True):
    """The key stands for another body."""


class Unsealed(msgspec.Struct, frozen=True):
    """The customer's key cannot be used, so the contact cannot be kept; nothing was written."""


Verdict = Answer | KeyReused | Unsealed


class _Prepared(Struct, frozen=True):
    request: Request
    key: Key | None
    order: Order
    fact: Fact
    body: bytes


def fingerprint_of(draft: Draft, mark: bytes) -> bytes:
    """What a repeat of a key has to agree with. The same order written otherwise, with other white
    space say, is the same request.

    The contact is in it by its mark: a plain hash of an address can be found by trying addresses.
    """
    if draft.contact is not None:
        draft = msgspec.structs.replace(draft, contact=None)
    return hashlib.sha256(encode_json(draft) + mark).digest()


def prepare(request: Request, order_id: str, contact: Sealed | None) -> _Prepared:
    """Make everything that will be written if the request's key is free."""
    draft = request.draft
    amount = money(draft.amount_minor, draft.currency)
    fingerprint = fingerprint_of(draft, contact.mark if contact else b"")
    body = encode_json(Accepted(order_id, PENDING, amount, draft.currency))
    key = requested = None
    if request.key is not None:
        key = Key(request.caller, request.key, fingerprint, order_id, body)
        requested = Requested(request.caller, key.digest, fingerprint.hex())
    created = OrderCreated(
        order_id,
        draft.customer_id,
        amount,
        draft.currency,
        draft.items,
        draft.payment_method,
        contact.text if contact else None,
        requested,
        request.caller if request.named else None,
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
        contact=created.contact,
        reason=None,
        version=1,
        trace_id=request.cause.trace_id,
    )
    return _Prepared(request, key, order, Fact(order_id, 1, created), body)


def remembered(created: OrderCreated) -> Key | None:
    """The idempotency key of an order that has been told, as far as it was."""
    if created.request is None or created.currency is None:
        return None
    answer = Accepted(created.order_id, PENDING, created.amount, created.currency)
    return Key(
        created.request.caller,
        REMEMBERED + created.request.key,
        bytes.fromhex(created.request.fingerprint),
        created.order_id,
        encode_json(answer),
    )


async def accept(
    requests: Sequence[Request],
    *,
    database: Database,
    vault: Vault,
    history: History,
    publish: Callable[[Commit], object],
    new_id: Callable[[], str],
) -> list[Verdict]:
    """Accept orders: keys, orders and facts in one transaction; publishing needs no waiting for.

    A request whose customer's key is damaged is `Unsealed`, and does not hold up the others.
    """
    contacts = await _sealed(requests, vault)
    prepared = [
        prepare(request, new_id(), contact)
        for request, contact in zip(requests, contacts, strict=True)
        if not isinstance(contact, Unsealed)
    ]
    answers = iter(await _write(prepared, database, history, publish) if prepared else ())
    return [each if isinstance(each, Unsealed) else next(answers) for each in contacts]


async def _write(
    prepared: Sequence[_Prepared],
    database: Database,
    history: History,
    publish: Callable[[Commit], object],
) -> list[Answer | KeyReused]:
    first: dict[tuple[str, str], Key] = {}
    for each in prepared:
        if each.key is not None:
            first.setdefault((each.key.caller, each.key.key), each.key)
    commit: Commit | None = None
    async with database.transaction() as connection:
        store = Store(connection)
        free = await store.claim([*first.values()]) if first else set()
        taken = first.keys() - free
        known = await store.keys([first[key] for key in taken]) if taken else {}
        known |= {key: first[key] for key in free}
        new = [each for each in prepared if _is_new(each, first, free)]
        if new:
            await store.add([each.order for each in new])
            facts = [(each.fact, each.request.cause) for each in new]
            commit = await history.record(connection, facts)
    if commit is not None:
        publish(commit)
    return [_answer(each, known, _is_new(each, first, free)) for each in prepared]


def _is_new(each: _Prepared, first: dict[tuple[str, str], Key], free: set[tuple[str, str]]) -> bool:
    if each.key is None:
        return True
    name = (each.key.caller, each.key.key)
    return name in free and first[name] is each.key


def _answer(each: _Prepared, known: dict[tuple[str, str], Key], is_new: bool) -> Answer | KeyReused:
    if each.key is None or is_new:
        return Answer(each.order.order_id, each.body)
    kept = known[each.key.caller, each.key.key]
    # As it was made once, contact and all, and is kept with older orders.
    former = hashlib.sha256(encode_json(each.request.draft)).digest()
    if kept.fingerprint not in (each.key.fingerprint, former):
        return KeyReused()
    return Answer(kept.order_id, kept.answer, replayed=True)


async def _sealed(requests: Sequence[Request], vault: Vault) -> list[Sealed | Unsealed | None]:
    reachable = [
        (request.draft.customer_id, request.draft.contact)
        for request in requests
        if request.draft.contact is not None
    ]
    sealed = iter(await _encrypted(reachable, vault) if reachable else [])
    return [None if request.draft.contact is None else next(sealed) for request in requests]


async def _encrypted(
    contacts: Sequence[tuple[str, Contact]], vault: Vault
) -> list[Sealed | Unsealed]:
    """Encrypt what can be; the batch is halved until the damaged key stands alone."""
    try:
        return [*await vault.seal(contacts)]
    except (Refused, ValueError):
        customers = sorted({customer for customer, _ in contacts})
        if len(customers) == 1:
            return [Unsealed()] * len(contacts)
        half = set(customers[: len(customers) // 2])
        found: dict[int, Sealed | Unsealed] = {}
        for in_half in (True, False):
            places = [at for at, (who, _) in enumerate(contacts) if (who in half) == in_half]
            sealed = await _encrypted([contacts[at] for at in places], vault)
            found.update(zip(places, sealed, strict=True))
        return [found[at] for at in range(len(contacts))]
