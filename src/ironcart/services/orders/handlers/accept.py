"""Accept orders, as many as have come together, in one transaction."""

import hashlib
from collections.abc import Callable, Sequence
from decimal import Decimal

import msgspec
from msgspec import Struct

from ironcart.events import Item, OrderCreated, Requested, money
from ironcart.services.orders.handlers.check import CurrencyCode, Draft
from ironcart.services.orders.handlers.table import Status
from ironcart.services.orders.store import REMEMBERED, Key, Order, Store
from ironcart.toolkit.database import Database
from ironcart.toolkit.envelope import Name, encode_json
from ironcart.toolkit.history import Cause, Commit, History
from ironcart.toolkit.outcomes import Fact, Poison, Refused
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
    repeats = await _repeats(requests, database, vault)
    requests = [each for at, each in enumerate(requests) if at not in repeats]
    contacts = await _sealed(requests, vault)
    prepared = [
        prepare(request, new_id(), contact)
        for request, contact in zip(requests, contacts, strict=True)
        if not isinstance(contact, Unsealed)
    ]
    answers = iter(await _write(prepared, database, vault, history, publish) if prepared else ())
    verdicts: list[Verdict] = [
        each if isinstance(each, Unsealed) else next(answers) for each in contacts
    ]
    for at in sorted(repeats):
        verdicts.insert(at, repeats[at])
    return verdicts


async def _repeats(
    requests: Sequence[Request], database: Database, vault: Vault
) -> dict[int, Answer | KeyReused]:
    """Answer, by their places, repeats for which a customer's key would have to be made or mended.

    Whoever was forgotten gets a key by a new order, and not because an old one is asked for again.
    """
    customers = {each.draft.customer_id for each in requests if each.key and each.draft.contact}
    lacking = await vault.lacking(customers) if customers else None
    if not lacking:
        return {}
    asked = {
        at: Key(each.caller, each.key, b"", "", b"")
        for at, each in enumerate(requests)
        if each.key and each.draft.contact and each.draft.customer_id in lacking
    }
    async with database.acquire() as connection:
        store = Store(connection)
        known = await store.keys([*asked.values()])
        places = [at for at, key in asked.items() if (key.caller, key.key) in known]
        repeated = [(requests[at], known[asked[at].caller, asked[at].key]) for at in places]
        return dict(zip(places, await _compared(repeated, store, vault), strict=True))


async def _write(
    prepared: Sequence[_Prepared],
    database: Database,
    vault: Vault,
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
        answers = [_answer(each, known, _is_new(each, first, free)) for each in prepared]
        # Before the commit: what fails after it would deny orders that are accepted.
        await _look_closer(prepared, answers, known, store, vault)
        new = [each for each in prepared if _is_new(each, first, free)]
        if new:
            await store.add([each.order for each in new])
            facts = [(each.fact, each.request.cause) for each in new]
            commit = await history.record(connection, facts)
    if commit is not None:
        publish(commit)
    return answers


async def _look_closer(
    prepared: Sequence[_Prepared],
    answers: list[Answer | KeyReused],
    known: dict[tuple[str, str], Key],
    store: Store,
    vault: Vault,
) -> None:
    """Compare what fingerprints call another body with the orders themselves."""
    repeated = {
        at: (each.request, known[each.key.caller, each.key.key])
        for at, each in enumerate(prepared)
        if each.key is not None and isinstance(answers[at], KeyReused)
    }
    if repeated:
        found = await _compared([*repeated.values()], store, vault)
        for at, answer in zip(repeated, found, strict=True):
            answers[at] = answer


def _is_new(each: _Prepared, first: dict[tuple[str, str], Key], free: set[tuple[str, str]]) -> bool:
    if each.key is None:
        return True
    name = (each.key.caller, each.key.key)
    return name in free and first[name] is each.key


def _answer(each: _Prepared, known: dict[tuple[str, str], Key], is_new: bool) -> Answer | KeyReused:
    if each.key is None or is_new:
        return Answer(each.order.order_id, each.body)
    kept = known[each.key.caller, each.key.key]
    if kept.fingerprint not in (each.key.fingerprint, _former(each.request.draft)):
        return KeyReused()
    return Answer(kept.order_id, kept.answer, replayed=True)


def _former(draft: Draft) -> bytes:
    """A fingerprint as it was made once, contact and all, and is kept with older orders."""
    return hashlib.sha256(encode_json(draft)).digest()


async def _compared(
    repeated: Sequence[tuple[Request, Key]], store: Store, vault: Vault
) -> list[Answer | KeyReused]:
    """Compare requests with the orders that their keys stand for, when fingerprints cannot tell.

    A fingerprint dies with the customer's key, the idempotency key must not: a contact that nobody
    can read any more agrees with every other one, else a retry would be told to order again.
    """
    orders = await store.placed([kept.order_id for _, kept in repeated])
    sealed = [
        (order.customer_id, order.contact)
        for order in orders.values()
        if order.customer_id is not None and order.contact is not None
    ]
    readable = dict(zip(sealed, await _read(sealed, vault), strict=True))
    verdicts: list[Answer | KeyReused] = []
    for request, kept in repeated:
        order, draft = orders.get(kept.order_id), request.draft
        same = kept.fingerprint == _former(draft)
        if order is not None and not same and _agree(order, draft):
            contact = readable.get((draft.customer_id, order.contact or ""))
            same = contact is None or contact == draft.contact
        answer = Answer(kept.order_id, kept.answer, replayed=True)
        verdicts.append(answer if same else KeyReused())
    return verdicts


def _agree(order: Order, draft: Draft) -> bool:
    """Whether an order is what a draft asks for, whoever is to be written to."""
    placed = (order.customer_id, order.currency, order.amount_minor, order.payment_method)
    asked = (draft.customer_id, draft.currency, draft.amount_minor, draft.payment_method)
    items = msgspec.json.decode(order.items or b"[]", type=tuple[Item, ...])
    reachable = order.contact is not None
    return placed == asked and items == draft.items and reachable == (draft.contact is not None)


async def _read(sealed: Sequence[tuple[str, str]], vault: Vault) -> list[Contact | None]:
    """Read contacts; None where the customer's key is gone, is another one, or is damaged."""
    try:
        found = await vault.decrypt(sealed)
        return [None if isinstance(each, Poison) else each for each in found]
    except Refused:
        if len(sealed) == 1:
            return [None]
        return [contact for each in sealed for contact in await _read([each], vault)]


async def _sealed(requests: Sequence[Request], vault: Vault) -> list[Sealed | Unsealed | None]:
    reachable = [
        (request.draft.customer_id, request.draft.contact)
        for request in requests
        if request.draft.contact is not None
    ]
    sealed = iter(await vault.seal(reachable) if reachable else [])
    found = [None if request.draft.contact is None else next(sealed) for request in requests]
    return [Unsealed() if isinstance(each, Poison) else each for each in found]
