"""Operators' refunds: exact, once for each request, one at a time for an order."""

import hashlib
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from ironcart.events import AMOUNT_MINOR_UNITS_MAX, minor_units, money
from ironcart.services.payments.gateway import Reply
from ironcart.services.payments.handlers.table import OperatorRefundAsked, step
from ironcart.services.payments.store import Payment, RefundStore, Store
from ironcart.toolkit.database import Connection, Transaction
from ironcart.toolkit.http import Fault, Problem
from ironcart.toolkit.jobs import Jobs

# It is kept for ever, and in the clear: a mail address has no place in it.
REASON_PATTERN = r"^[^\x00@]{0,255}\Z"
# Refunds that were made before that may be asked for again: the @ waits until the key is known.
_REASON_READ = r"^[^\x00]{0,255}\Z"
_REASON_FAULT = Fault("/reason", "use at most 255 characters, no NUL and no @")
KEY_REUSED = "this Idempotency-Key was used with another body: use a new key"
_NAMESPACE: Final = uuid.UUID("5b0c7c0e-2f0e-5d57-9f06-0c1d2b7f5a10")
# A JSON number as it was written, without an exponent: floats never see money.
_PLAIN_NUMBER = re.compile(rb"-?(0|[1-9][0-9]*)(\.[0-9]+)?\Z")
_AMOUNTS = {"exclusiveMinimum": 0, "maximum": AMOUNT_MINOR_UNITS_MAX}


class PostRefund(Struct, frozen=True, forbid_unknown_fields=True):
    """What to give back: an amount, or, without one, all that is left."""

    amount: (
        Annotated[
            Decimal,
            Meta(
                description="exact, with at most the currency's decimals; at most what is left",
                extra_json_schema=_AMOUNTS,
            ),
        ]
        | UnsetType
    ) = UNSET
    reason: Annotated[str, Meta(pattern=REASON_PATTERN)] | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class Request:
    """One POST of a refund; `key` is its idempotency key, `fallback_id` its id without one."""

    order_id: str
    amount: Decimal | None
    reason: str
    caller: str
    key: str | None
    fallback_id: str

    @property
    def refund_id(self) -> str:
        """The same for the same key, also after the database has forgotten it."""
        if self.key is None:
            return self.fallback_id
        return uuid.uuid5(_NAMESPACE, f"{self.caller}/{self.order_id}/{self.key}").hex

    @property
    def fingerprint(self) -> bytes:
        """What a repeat of the key has to agree with; 5 is 5.00."""
        amount = "" if self.amount is None else f"{self.amount.normalize():f}"
        return hashlib.sha256(f"{self.order_id}\n{amount}\n{self.reason}".encode()).digest()


def read_refund(body: bytes) -> tuple[Decimal | None, str] | list[Fault]:
    """Read amount and reason, or everything that is wrong; raises `msgspec.DecodeError`.

    Whether the reason is one that a new refund may have, `ask` says.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, Raw])
    except msgspec.ValidationError:
        return [Fault("", "must be a JSON object")]
    known = PostRefund.__struct_fields__
    faults = [
        Fault("/" + name.replace("~", "~0").replace("/", "~1")[:64], "is not a field; leave it out")
        for name in sorted(fields.keys() - set(known))
    ]
    amount, reason = None, ""
    if "amount" in fields:
        if _PLAIN_NUMBER.match(written := bytes(fields["amount"])):
            amount = Decimal(written.decode())
        else:
            faults.append(Fault("/amount", "use a plain JSON number, such as 5.00"))
    if "reason" in fields:
        try:
            reason = msgspec.json.decode(fields["reason"], type=str)
        except msgspec.MsgspecError:
            faults.append(Fault("/reason", "must be a string"))
        if not re.match(_REASON_READ, reason):
            faults.append(_REASON_FAULT)
    return sorted(faults, key=lambda fault: fault.pointer) or (amount, reason)


def allow(payment: Payment, amount: Decimal | None) -> int | Problem:
    """Say how many minor units go back, or why none do."""
    if payment.state in ("op_refunding", "op_then_refund"):
        return Problem(409, "a refund of this payment is under way: wait until it is over")
    if payment.state != "succeeded" or payment.amount_minor is None or payment.currency is None:
        return Problem(409, f"the payment is {payment.state}: there is nothing to give back")
    left = payment.amount_minor - payment.refunded_minor
    units = left
    if amount is not None:
        try:
            units = minor_units(amount, payment.currency)
        except ValueError as error:
            return Problem(400, "the refund is not valid", faults=[Fault("/amount", str(error))])
        if units < 1:
            fault = Fault("/amount", "must be at least 1 minor unit")
            return Problem(400, "the refund is not valid", faults=[fault])
    if units > left or not left:
        return Problem(409, f"{money(left, payment.currency)} {payment.currency} are left")
    return units


async def ask(
    request: Request,
    transaction: Transaction,
    *,
    jobs: "Jobs[Payment, Reply]",
    show: Callable[[Payment], bytes],
) -> bytes | Problem:
    """Begin a refund, as a job; the answer is the payment as `show` writes it, or a problem.

    Idempotent by its key: a repeat gets the first answer. Raises `LostRace` to be run again.
    """
    connection, order_id = transaction.connection, request.order_id
    store = Store(connection)
    # Jobs are locked before rows, as settling does.
    await jobs.lock(connection, [order_id])
    payment = (await store.lock([order_id])).get(order_id)
    if (answered := await _answered(request, connection)) is not None:
        return answered
    if not re.match(REASON_PATTERN, request.reason):
        return Problem(400, "the refund is not valid", faults=[_REASON_FAULT])
    if payment is None:
        return Problem(404, f"payments has not heard of order {order_id}")
    units = allow(payment, request.amount)
    if isinstance(units, Problem):
        return units
    after, _ = step(payment, OperatorRefundAsked(request.refund_id, units))
    await store.move([after])
    answer = show((await store.find([order_id]))[order_id])
    await RefundStore(connection).add(
        after,
        reason=request.reason,
        caller=request.caller,
        key=request.key,
        fingerprint=request.fingerprint,
        answer=answer,
    )
    await jobs.hasten(transaction, [order_id])
    return answer


async def _answered(request: Request, connection: Connection) -> bytes | Problem | None:
    if request.key is None:
        return None
    kept = await RefundStore(connection).answered(request.caller, request.key)
    if kept is None:
        return None
    fingerprint, answer = kept
    return answer if fingerprint == request.fingerprint else Problem(422, KEY_REUSED)
