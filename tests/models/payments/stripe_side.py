"""The gateway as it answers: intents, refunds, and idempotency keys that may be forgotten."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import stripe

from ironcart.toolkit.outcomes import Unavailable

PATH = "/v1/payment_intents"
REFUNDS = "/v1/refunds"
DECLINE_CODE = "generic_decline"
INTENTS_MAX = 6


class Request(NamedTuple):
    """One HTTP request of the service; `key` is its idempotency key."""

    method: str
    path: str
    key: str | None
    params: tuple[tuple[str, Any], ...]

    @property
    def reads_only(self) -> bool:
        """Whether it can be forgotten when nobody waits for the answer."""
        return self.method == "get"

    @property
    def verb(self) -> str:
        """What it asks for, in one word."""
        words = self.path.removeprefix("/v1/").split("/")
        last = words[-1] if len(words) == 3 else ""
        if last:
            return last
        if self.reads_only:
            return f"list {words[0]}" if len(words) == 1 else "look up"
        return "refund" if words[0] == "refunds" else "create"


class Intent(NamedTuple):
    """One intent; `refunds` are (minor units, metadata) in the order they were made."""

    status: str  # open, succeeded or canceled
    amount: int
    refunds: tuple[tuple[int, Any], ...] = ()

    @property
    def kept(self) -> int:
        """The minor units of this intent that the shop holds."""
        given_back = sum(amount for amount, _ in self.refunds)
        return self.amount - given_back if self.status == "succeeded" else 0


# What the service will be given: a name and what belongs to it, so that it can be compared.
Answer = tuple[str, Any]
INVALID: Answer = ("invalid", "unexpected_state")


class Books(NamedTuple):
    """All that the gateway knows. `keys` holds what a repeat is answered differently for."""

    intents: tuple[Intent, ...] = ()
    keys: tuple[tuple[str, Request, Answer], ...] = ()

    def forget_keys(self) -> "Books":
        """Every key is pruned, as it may be after a day."""
        return self._replace(keys=())

    def cancel(self, number: int) -> "Books":
        """Somebody else cancels an intent."""
        return self._put(number, self.intents[number]._replace(status="canceled"))

    def _put(self, number: int, intent: Intent) -> "Books":
        return self._replace(intents=(*self.intents[:number], intent, *self.intents[number + 1 :]))


class Executed(NamedTuple):
    """One way in which a request may go; `declines` says that the card said no."""

    books: Books
    answer: Answer
    declines: bool = False


def execute(books: Books, request: Request) -> Iterator[Executed]:
    """Execute one request; a key that is still known gets the answer it was first given."""
    if request.key is not None:
        for key, first, answer in books.keys:
            if key == request.key:
                clash: Answer = ("unavailable", "the key was used for another request")
                yield Executed(books, answer if first == request else clash)
                return
    for done in _execute(books, request):
        # Confirming and cancelling again says what the first answer said, except after a decline.
        if request.verb in ("create", "refund") or done.declines:
            kept = (*done.books.keys, (request.key or "", request, done.answer))
            yield done._replace(books=done.books._replace(keys=tuple(sorted(kept))))
        else:
            yield done


def _execute(books: Books, request: Request) -> Iterator[Executed]:
    params = dict(request.params)
    match request.verb:
        case "create":
            yield _created(books, params)
        case "list payment_intents":
            yield Executed(books, ("intents", books.intents))
        case "list refunds":
            number = _number(params["payment_intent"])
            yield Executed(books, ("refunds", books.intents[number].refunds))
        case "refund":
            yield _given_back(books, params)
        case verb:
            number = _number(request.path.split("/")[3])
            yield from _moved(books, number, verb)


def _created(books: Books, params: dict[str, Any]) -> Executed:
    assert len(books.intents) < INTENTS_MAX, "the service creates intents without end"
    number = len(books.intents)
    intent = Intent("succeeded" if params.get("confirm") else "open", params["amount"])
    made = books._replace(intents=(*books.intents, intent))
    return Executed(made, ("intent", (number, intent)))


def _given_back(books: Books, params: dict[str, Any]) -> Executed:
    number = _number(params["payment_intent"])
    intent = books.intents[number]
    amount = params.get("amount", intent.kept)
    if not 0 < amount <= intent.kept:
        return Executed(books, ("invalid", "charge_already_refunded"))
    refund = (amount, params.get("metadata", ()))
    after = intent._replace(refunds=(*intent.refunds, refund))
    return Executed(books._put(number, after), ("refund", refund))


def _moved(books: Books, number: int, verb: str) -> Iterator[Executed]:
    intent = books.intents[number]
    if verb == "look up":
        yield Executed(books, ("intent", (number, intent)))
    elif intent.status != "open":
        yield Executed(books, INVALID)
    elif verb == "cancel":
        closed = books.cancel(number)
        yield Executed(closed, ("intent", (number, closed.intents[number])))
    else:
        paid = books._put(number, intent._replace(status="succeeded"))
        yield Executed(paid, ("intent", (number, paid.intents[number])))
        # The intent stays open: whoever confirms it once more may have better luck.
        yield Executed(books, ("declined", DECLINE_CODE), declines=True)


def _number(intent_id: str) -> int:
    return int(intent_id.removeprefix("pi_"))


def intent_id(number: int) -> str:
    """What the service knows an intent by."""
    return f"pi_{number}"


def said(answer: Answer, order_id: str) -> dict[str, Any] | Exception:
    """Word an answer as the Stripe SDK does: an object to return, or an exception to raise."""
    kind, told = answer
    if kind in _FAILURES:
        return _FAILURES[kind](told)
    match kind:
        case "intent":
            number, intent = told
            return worded(number, intent, order_id)
        case "intents":
            return _page([worded(number, each, order_id) for number, each in enumerate(told)])
        case "refund":
            return _refund(*told)
    return _page([_refund(amount, metadata) for amount, metadata in told])


def _declined(code: str) -> Exception:
    body = {"error": {"decline_code": code}}
    return stripe.CardError("no", "", code, json_body=body)  # type: ignore[no-untyped-call]


def _invalid(code: str) -> Exception:
    return stripe.InvalidRequestError("not now", None, code)  # type: ignore[no-untyped-call]


_FAILURES: dict[str, Callable[[str], Exception]] = {
    "declined": _declined,
    "invalid": _invalid,
    "unavailable": Unavailable,
}


def _page(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"data": items[::-1], "has_more": False}


def _refund(amount: int, metadata: Any) -> dict[str, Any]:
    return {"id": "re", "status": "succeeded", "amount": amount, "metadata": dict(metadata)}


def worded(number: int, intent: Intent, order_id: str) -> dict[str, Any]:
    """An intent as an object of Stripe's API."""
    captured = intent.status == "succeeded"
    return {
        "id": intent_id(number),
        "status": "requires_confirmation" if intent.status == "open" else intent.status,
        "metadata": {"order_id": order_id},
        "created": number,
        "amount": intent.amount,
        "amount_received": intent.amount if captured else 0,
        "currency": "eur",
        "payment_method": "pm_card_visa",
        "latest_charge": {"amount_refunded": intent.amount - intent.kept} if captured else None,
    }
