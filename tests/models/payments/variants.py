"""Payments with one rule left out: each must break, or the rule would be for nothing."""

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from ironcart.services.payments.gateway import Canceled, Declined, Gateway, Reply, Succeeded
from ironcart.services.payments.store import Payment
from ironcart.toolkit.outcomes import Fact
from models.payments.protocol import Protocol
from models.payments.service import Decided, Service
from models.payments.world import Budget


class OneShot(Gateway):
    """Creates and confirms in one call, so that only the key stands between us and a repeat."""

    async def create(self, *, amount_minor: int, attempts: int, **order: Any) -> Reply:
        key = f"pay:{order['order_id']}{self.attempt(attempts)}"
        await self._post("/v1/payment_intents", key, amount=amount_minor, confirm=True)
        return Succeeded()

    def attempt(self, attempts: int) -> str:
        """What the key says of the attempt."""
        return ""


class KeyPerAttempt(OneShot):
    def attempt(self, attempts: int) -> str:
        return f":{attempts}"


class RefundsBlindly(Gateway):
    """Gives a part back without looking whether it has been."""

    async def _find_refund(self, intent_id: str, refund_id: str) -> tuple[None, int]:
        return None, 0


class NoGeneration(Service):
    """Uses one key for every intent of an order, also after somebody cancelled the first."""

    def step(self, payment: Payment, event: Any) -> tuple[Payment, Fact | None]:
        after, fact = super().step(payment, event)
        return replace(after, generation=0), fact

    def learn(self, payment: Payment, reply: Reply) -> tuple[Payment, Fact | None]:
        after, fact = super().learn(payment, reply)
        return replace(after, generation=0), fact


class FailsAtDecline(Service):
    """Says PaymentFailed as soon as the card is declined, with the intent still open."""

    def learn(self, payment: Payment, reply: Reply) -> tuple[Payment, Fact | None]:
        after, fact = super().learn(payment, reply)
        if isinstance(reply, Declined) and after.state == "closing":
            return self.step(after, Canceled())
        return after, fact


class VoidsAtOnce(Service):
    """Says PaymentVoided when the cancellation arrives, although an intent is there."""

    def deliver(self, payment: Payment | None, event: Any, **how: bool) -> Decided:
        decided = super().deliver(payment, event, **how)
        row = self.rows[decided.row]
        if row is None or row.state != "voiding":
            return decided
        after, fact = self.step(row, Canceled())
        return Decided(self.rows.number(after), () if fact is None else (fact,))


class ForgetsToLook(Service):
    """Sends after a restore as if it knew all about an order that it knows something of."""

    def deliver(self, payment: Payment | None, event: Any, **how: bool) -> Decided:
        return super().deliver(payment, event, **{**how, "recovering": False})

    def mark(self, payment: Payment) -> Payment:
        return payment


class ForgetsFacts(Service):
    """Does not read back what it told after the backup was made."""

    def fold(self, payment: Payment | None, fact: Fact) -> Payment | None:
        return payment


RESTORED = Budget(crashes=0, timeouts=1, prunes=1, orphans=0, declines=1, restores=1)
LEAN = Budget(crashes=1, timeouts=1, prunes=1, orphans=1, declines=1)
_VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    "a one-shot charge with a key per attempt": lambda: {
        "service": Service(KeyPerAttempt),
        "budget": LEAN._replace(prunes=0),
        "cancels": False,
    },
    "a one-shot charge whose key is pruned": lambda: {
        "service": Service(OneShot),
        "cancels": False,
    },
    "a create key without a generation": lambda: {"service": NoGeneration(), "cancels": False},
    "PaymentFailed at the decline": lambda: {"service": FailsAtDecline()},
    "PaymentVoided at once": lambda: {"service": VoidsAtOnce()},
    "settling without the lease": lambda: {"only_live_settle": False},
    "an operator's refund without a look": lambda: {
        "service": Service(RefundsBlindly),
        "budget": Budget(crashes=1, timeouts=1, prunes=0, orphans=0, declines=0, days=1),
        "cancels": False,
        "refunds": True,
    },
    "an operator's refund that is under way when its key is pruned": lambda: {
        "budget": Budget(crashes=0, timeouts=1, prunes=1, orphans=0, declines=0),
        "cancels": False,
        "refunds": True,
    },
    "restored, without a look at the gateway": lambda: {
        "service": ForgetsToLook(),
        "budget": RESTORED,
    },
    "restored, without folding what had been told": lambda: {
        "service": ForgetsFacts(),
        "budget": RESTORED,
    },
    "restored, with the leases of before": lambda: {"budget": RESTORED, "voids_leases": False},
}
VARIANTS = tuple(_VARIANTS)


def variant(name: str) -> Protocol:
    """The protocol with one rule left out."""
    return Protocol(**{"name": name, "budget": LEAN, **_VARIANTS[name]()})
