"""Stripe's /v1 API over the book: authentication, idempotency keys, routes.

What is saved under an Idempotency-Key, as at Stripe: every answer of a request that began to
execute, errors too. A request that never began saves nothing: 401, 404, 409, a bad parameter.
"""

import base64
import binascii
import hashlib
import time
from collections.abc import Callable
from functools import lru_cache

from ironcart.embedded.sandbox.book import Book
from ironcart.embedded.sandbox.cards import APPROVED, DECLINED, VERDICTS, Verdict
from ironcart.embedded.sandbox.faults import Faults
from ironcart.embedded.sandbox.form import Form
from ironcart.embedded.sandbox.objects import (
    answer_to,
    failure_answer,
    intent_object,
    object_answer,
    page_answer,
    refund_object,
)
from ironcart.embedded.sandbox.records import Attempt, Change, Draft, Failure, Refused, refuse
from ironcart.embedded.sandbox.wire import Answer, Request

MAX_AMOUNT_MINOR = 99_999_999
MAX_KEY_CHARS = 255
MAX_AUTHORIZATIONS_REMEMBERED = 16
MAX_PAGE = 100
DEFAULT_PAGE = 10
MAX_TIME_S = 2**40
FINGERPRINT_BYTES = 8

_ATTEMPT = ("payment_method", "off_session", "error_on_requires_action", "return_url")
_CREATE = frozenset(
    {
        *_ATTEMPT,
        "amount",
        "currency",
        "confirm",
        "metadata",
        "description",
        "payment_method_types",
        "automatic_payment_methods",
        "capture_method",
        "confirmation_method",
        "receipt_email",
        "statement_descriptor",
        "statement_descriptor_suffix",
    }
)
_CONFIRM = frozenset(_ATTEMPT)
_CANCEL = frozenset({"cancellation_reason"})
_REFUND = frozenset({"payment_intent", "amount", "metadata", "reason"})
_LIST = frozenset({"limit", "starting_after"})
_CANCELLATION_REASONS = ("duplicate", "fraudulent", "requested_by_customer", "abandoned")
_REFUND_REASONS = ("duplicate", "fraudulent", "requested_by_customer")


class StripeApi:
    """Executes requests. `on_change(change)` is told of each change, once it is true."""

    def __init__(
        self,
        book: Book,
        faults: Faults,
        on_change: Callable[[Change], None] = lambda _: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._book = book
        self._faults = faults
        self._on_change = on_change
        self._now = now
        self._in_use: set[str] = set()

    def answer(self, request: Request) -> Answer:
        """Execute one request, or replay the answer its key was first given."""
        try:
            _authenticate(request.authorization)
            if request.method == "GET":
                return self._get(request)
            if request.method != "POST":
                raise _unrecognized(request)
            return self._post(request)
        except Refused as refusal:
            return failure_answer(refusal.failure)

    def fail(self, request: Request, *, begun: bool) -> Answer:
        """Answer 500. When it had begun, that 500 is saved under the key; no money moves."""
        failure = Failure(500, "api_error", "An unknown error occurred (a sandbox fault).")
        if begun and request.method == "POST" and request.key is not None:
            try:
                _authenticate(request.authorization)
                fingerprint = _fingerprint(request)
                earlier = self._earlier(request.key, fingerprint)
            except Refused as refusal:
                return failure_answer(refusal.failure)
            if earlier is not None:
                return answer_to(earlier, replayed=True)
            self._book.record(Change(self._now(), failure=failure), request.key, fingerprint)
        return failure_answer(failure)

    def hold_key(self, key: str) -> bool:
        """Count the key as in use by a request whose answer is not out yet; False if it was."""
        if key in self._in_use:
            return False
        self._in_use.add(key)
        return True

    def release_key(self, key: str) -> None:
        """The answer of the request that held this key is out."""
        self._in_use.discard(key)

    def _get(self, request: Request) -> Answer:
        ledger = self._book.ledger
        match request.path.split("/")[2:]:
            case ["payment_intents"]:
                form = Form(request.query, _LIST | {"created", "expand"})
                created_from = form.integer("created[gte]", 0, MAX_TIME_S) or 0
                intents, more = ledger.page_of_intents(*_page(form), created_from)
                charged = _with_charge(form, "data.latest_charge")
                items = [intent_object(intent, with_charge=charged) for intent in intents]
                return page_answer(request.path, items, has_more=more)
            case ["payment_intents", intent_id] if intent_id:
                charged = _with_charge(Form(request.query, {"expand"}), "latest_charge")
                return object_answer(intent_object(ledger.intent(intent_id), with_charge=charged))
            case ["refunds"]:
                form = Form(request.query, _LIST | {"payment_intent"})
                refunds, more = ledger.page_of_refunds(form.text("payment_intent"), *_page(form))
                return page_answer(request.path, [*map(refund_object, refunds)], has_more=more)
            case ["refunds", refund_id] if refund_id:
                return object_answer(refund_object(ledger.refund(refund_id)))
            case _:
                raise _unrecognized(request)

    def _post(self, request: Request) -> Answer:
        fingerprint = None
        if request.key is not None:
            fingerprint = _fingerprint(request)
            earlier = self._earlier(request.key, fingerprint)
            if earlier is not None:
                return answer_to(earlier, replayed=True)
        change = self._book.record(self._execute(request), request.key, fingerprint)
        self._on_change(change)
        return answer_to(change)

    def _earlier(self, key: str, fingerprint: str) -> Change | None:
        if len(key) > MAX_KEY_CHARS:
            raise Refused(
                Failure(400, "idempotency_error", f"Keys are at most {MAX_KEY_CHARS} characters.")
            )
        if key in self._in_use:
            raise Refused(
                Failure(
                    409,
                    "invalid_request_error",
                    "There is currently another in-progress request using this Idempotent Key: "
                    f"{key}. Please try again later.",
                    "idempotency_key_in_use",
                )
            )
        earlier = self._book.saved(key, self._now())
        if earlier is not None and earlier.fingerprint != fingerprint:
            raise Refused(
                Failure(
                    400,
                    "idempotency_error",
                    "Keys for idempotent requests can only be used with the same endpoint and "
                    f"parameters they were first used with. Try using a key other than '{key}' "
                    "if you meant to execute a different request.",
                )
            )
        return earlier

    def _execute(self, request: Request) -> Change:
        match request.path.split("/")[2:]:
            case ["payment_intents"]:
                return self._create(request.body)
            case ["payment_intents", intent_id, "confirm"]:
                form = Form(request.body, _CONFIRM)
                attempt = _attempt(form)
                return self._book.ledger.confirm(intent_id, attempt, self._now(), self._issue)
            case ["payment_intents", intent_id, "cancel"]:
                form = Form(request.body, _CANCEL)
                reason = form.choice("cancellation_reason", _CANCELLATION_REASONS)
                return self._book.ledger.cancel(intent_id, reason, self._now())
            case ["refunds"]:
                form = Form(request.body, _REFUND)
                return self._book.ledger.give_back(
                    form.required("payment_intent"),
                    form.integer("amount", 1, MAX_AMOUNT_MINOR),
                    self._now(),
                    reason=form.choice("reason", _REFUND_REASONS),
                    metadata=form.mapping("metadata"),
                )
            case _:
                raise _unrecognized(request)

    def _create(self, body: bytes) -> Change:
        form = Form(body, _CREATE)
        amount = form.integer("amount", 1, MAX_AMOUNT_MINOR)
        if amount is None:
            refuse(400, "Missing required param: amount.", "parameter_missing", "amount")
        currency = form.required("currency").lower()
        if not (len(currency) == 3 and currency.isascii() and currency.isalpha()):
            refuse(400, f"Invalid currency: {currency}", param="currency")
        # Taking money at confirmation although the caller asked for two steps would be a lie.
        form.choice("capture_method", ("automatic", "automatic_async"))
        form.choice("confirmation_method", ("automatic",))
        attempt = _attempt(form)
        draft = Draft(
            amount=amount,
            currency=currency,
            payment_method=attempt.payment_method,
            metadata=form.mapping("metadata"),
            description=form.text("description"),
            attempt=attempt if form.flag("confirm") else None,
        )
        return self._book.ledger.create(draft, self._now(), self._issue)

    def _issue(self, payment_method: str) -> Verdict:
        verdict = VERDICTS[payment_method]
        return DECLINED if verdict is APPROVED and self._faults.strikes("decline") else verdict


@lru_cache(MAX_AUTHORIZATIONS_REMEMBERED)
def _authenticate(authorization: str) -> None:
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            secret = base64.b64decode(secret, validate=True).decode("utf-8").partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            secret = ""
    elif scheme.lower() != "bearer":
        refuse(401, "You did not provide an API key. Use `Authorization: Bearer sk_test_...`.")
    if not secret.startswith("sk_test_"):
        refuse(401, "Invalid API Key provided: the sandbox takes sk_test_... keys only.")


def _attempt(form: Form) -> Attempt:
    payment_method = form.text("payment_method")
    if payment_method is not None and payment_method not in VERDICTS:
        message = f"No such PaymentMethod: '{payment_method}'"
        refuse(400, message, "resource_missing", "payment_method")
    return Attempt(
        payment_method, form.flag("off_session") or form.flag("error_on_requires_action")
    )


def _page(form: Form) -> tuple[int, str | None]:
    return form.integer("limit", 1, MAX_PAGE) or DEFAULT_PAGE, form.text("starting_after")


def _with_charge(form: Form, path: str) -> bool:
    """Whether the charge is asked for as an object; nothing else can be."""
    wanted = form.mapping("expand").values()
    if other := next((each for each in wanted if each != path), None):
        refuse(400, f"This property cannot be expanded ({other}).", param="expand")
    return bool(wanted)


def _fingerprint(request: Request) -> str:
    fields = b"&".join(sorted(request.body.split(b"&")))
    whole = b"%s %s" % (request.path.encode(), fields)
    return hashlib.blake2b(whole, digest_size=FINGERPRINT_BYTES).hexdigest()


def _unrecognized(request: Request) -> Refused:
    message = f"Unrecognized request URL ({request.method}: {request.path})."
    return Refused(Failure(404, "invalid_request_error", message))
