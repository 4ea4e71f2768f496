"""Every way in which one order's events can be delivered, repeated, overtaken and undone."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from models.explorer import Step
from models.saga.tables import (
    CANCEL,
    FACTS,
    HEARS,
    INVENTORY,
    ORDERS,
    PAYMENTS,
    REFUND,
    UNHEARD_OF,
    Effect,
    Entry,
    Tables,
    tables,
)

SERVICES = (ORDERS, INVENTORY, PAYMENTS)
# One fact is told this often at most: the late ones that ask for a cancellation again.
REPEATS_MAX = 4
CAPTURED = 2
TOLD = (*FACTS, "StockCommitted", "StockReleased")
LIVE = ("pending", "reserved", "cancelling")
ENDS = ("OrderConfirmed", "OrderRejected", "OrderCancelled")
# What a job may be answered; while it closes an intent, an earlier confirm may have won.
ANSWERS: Mapping[str, tuple[str, ...]] = {
    "charging": ("Succeeded", "Declined"),
    "closing": ("Canceled", "Succeeded"),
    "voiding": ("Canceled", "Succeeded"),
    "refunding": ("Refunded",),
    "op_refunding": ("OperatorRefunded",),
    "op_then_refund": ("OperatorRefunded",),
}
PAYMENT_IS_OVER = ("voided", "failed", "refunded")
STOCK_IS_BACK = ("released", "rejected")


class Delivery(NamedTuple):
    """One copy of one fact, on its way to one service; nobody is everybody else."""

    fact: str
    repeat: int
    to: str


def _deliveries() -> Iterator[Delivery]:
    for fact in TOLD:
        takers = [service for service in SERVICES if fact in HEARS[service]]
        for repeat in range(REPEATS_MAX):
            yield from (Delivery(fact, repeat, to) for to in takers or [""])


# Deliveries are bits, so that a set of them is a number.
BITS: Mapping[Delivery, int] = {each: 1 << bit for bit, each in enumerate(_deliveries())}
MASKS: Mapping[tuple[str, int], int] = {
    (fact, repeat): sum(bit for each, bit in BITS.items() if each[:2] == (fact, repeat))
    for fact in TOLD
    for repeat in range(REPEATS_MAX)
}
AT: Mapping[int, Delivery] = {bit: each for each, bit in BITS.items()}
NOBODYS = sum(bit for each, bit in BITS.items() if not each.to)
REPEATS: Mapping[str, tuple[int, ...]] = {
    fact: tuple(MASKS[fact, repeat] for repeat in range(REPEATS_MAX)) for fact in TOLD
}
ANY: Mapping[str, int] = {fact: sum(masks) for fact, masks in REPEATS.items()}


def among(deliveries: int) -> Iterator[tuple[int, Delivery]]:
    """Yield the deliveries of a set, each with its bit."""
    while deliveries:
        bit = deliveries & -deliveries
        deliveries ^= bit
        yield bit, AT[bit]


class Chances(NamedTuple):
    """How often somebody may still interfere."""

    cancels: int = 2
    refunds: int = 1
    captures: int = 1  # Somebody captures at the gateway by hand, after the end.
    restores: int = 1  # Payments' database is restored, and it charges again.
    closures: int = 1  # Somebody cancels our intent at the gateway.


class Story(NamedTuple):
    """A state; money in halves of the order's amount."""

    orders: str
    inventory: str
    payments: str
    captured: int
    refunded: int
    coming: int  # Deliveries to come.
    done: int
    chances: Chances
    asked: bool = False  # Somebody was told that the order will be cancelled.

    def told(self, fact: str) -> int:
        """How often a fact has been told."""
        sent, times = self.coming | self.done, 0
        for mask in REPEATS[fact]:  # The most frequent question of all: no generator.
            times += bool(sent & mask)
        return times

    def less(self, chance: str) -> "Story":
        """One chance is used up."""
        chances = self.chances._replace(**{chance: getattr(self.chances, chance) - 1})
        return self._replace(chances=chances)


@dataclass(eq=False)
class Saga:
    """The model. `over` replaces entries of the code's tables."""

    name: str
    chances: Chances = Chances()  # noqa: RUF009 - a tuple, which nobody can change
    by_http: bool = True
    over: Tables = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tables = {**tables(), **self.over}
        self.used: set[Entry] = set()

    def start(self) -> Story:
        """An order is taken over HTTP, or its OrderCreated comes from elsewhere."""
        unheard = (UNHEARD_OF[ORDERS], UNHEARD_OF[INVENTORY], UNHEARD_OF[PAYMENTS])
        story = Story(*unheard, 0, 0, 0, 0, self.chances)
        if self.by_http:
            story = story._replace(orders="pending")
        return self._tell(story, ("OrderCreated",))

    def _tell(self, story: Story, facts: tuple[str, ...]) -> Story:
        for fact in facts:
            mask = MASKS[fact, min(story.told(fact), REPEATS_MAX - 1)]
            nobodys = mask & NOBODYS
            story = story._replace(coming=story.coming | mask & ~nobodys, done=story.done | nobodys)
        return story

    def _effects(self, story: Story, service: str, event: str) -> tuple[Effect, ...]:
        entry = Entry(service, getattr(story, service), event)
        self.used.add(entry)
        return self.tables[entry]

    def _happens(self, story: Story, service: str, event: str) -> Iterator[Story]:
        for state, says in self._effects(story, service, event):
            moved: Mapping[str, Any] = {service: state}
            yield self._tell(story._replace(**moved), says)

    def steps(self, story: Story) -> Iterator[Step[Story]]:
        """Deliveries in any order, what the gateway answers, and what people do."""
        for bit, each in among(story.coming):
            rest = story._replace(coming=story.coming & ~bit, done=story.done | bit)
            for after in self._happens(rest, each.to, each.fact):
                yield Step(f"{each.to} hears {each.fact}", after)
        yield from self._gateway(story)
        yield from self._people(story)

    def _gateway(self, story: Story) -> Iterator[Step[Story]]:
        for reply in ANSWERS.get(story.payments, ()):
            for known in _knows(story, reply):
                for after in self._happens(known, PAYMENTS, reply):
                    yield Step(reply, after)

    def _people(self, story: Story) -> Iterator[Step[Story]]:
        chances = story.chances
        over = story.payments in ("failed", "voided")
        if chances.cancels:
            asks = story.less("cancels")._replace(asked=story.asked or story.orders in LIVE)
            yield from self._chance(asks, ORDERS, CANCEL)
        if chances.refunds:
            yield from self._chance(story.less("refunds"), PAYMENTS, REFUND)
        if chances.closures and story.payments == "charging":
            yield from self._chance(story.less("closures"), PAYMENTS, "Canceled")
        if chances.captures and over:
            captured = story.less("captures")._replace(captured=CAPTURED)
            yield from self._chance(captured, PAYMENTS, "Succeeded")
        if chances.restores and over and not story.captured and not story.coming:
            charged = story.less("restores")._replace(payments="succeeded", captured=CAPTURED)
            after = self._tell(charged, ("PaymentSucceeded",))
            yield Step("payments is restored and charges", after, fault=True)

    def _chance(self, story: Story, service: str, event: str) -> Iterator[Step[Story]]:
        for after in self._happens(story, service, event):
            yield Step(f"{event}, by chance", after, fault=True)

    def broken(self, story: Story) -> Iterator[str]:
        """Rules for every moment."""
        if story.chances.restores == self.chances.restores:
            yield from self._repeats(story)
        sent = story.coming | story.done
        if sum(story.told(fact) for fact in ENDS) > 1:
            yield "two ends"
        if bool(sent & ANY["StockReserved"]) and bool(sent & ANY["StockRejected"]):
            yield "stock decided twice"
        yield from (
            f"{fact} told twice"
            for fact in ("StockReserved", "StockRejected", "StockCommitted", "StockReleased")
            if story.told(fact) > 1
        )
        yield from (
            f"{reply} is ignored while {story.payments}: it would be asked for ever"
            for reply in ANSWERS.get(story.payments, ())
            if self._effects(story, PAYMENTS, reply) == (Effect(story.payments),)
        )
        yield from self._doors(story)
        if story.orders == "confirmed" and not story.captured:
            yield "confirmed without money"
        if story.inventory == "committed" and not sent & ANY["OrderConfirmed"]:
            yield "committed without a confirmation"
        if story.inventory == "released" and not sent & (
            ANY["OrderCancelled"] | ANY["OrderRejected"]
        ):
            yield "released without an end"

    def _repeats(self, story: Story) -> Iterator[str]:
        for _, each in among(story.done & ~NOBODYS):
            state = getattr(story, each.to)
            if self._effects(story, each.to, each.fact) != (Effect(state),):
                yield f"a repeat of {each.fact} changes {each.to}"

    def _doors(self, story: Story) -> Iterator[str]:
        interfered = (
            story.chances.captures < self.chances.captures
            or story.chances.restores < self.chances.restores
        )
        if interfered:
            return
        if story.orders in ("cancelled_void", "cancelled_back"):
            if story.payments not in PAYMENT_IS_OVER:
                yield f"cancelled while the payment is {story.payments}"
        elif story.orders == "rejected_pay" and story.payments != "failed":
            yield f"rejected while the payment is {story.payments}"

    def broken_end(self, story: Story) -> Iterator[str]:
        """Rules for when nothing is left to be delivered or answered."""
        status = story.orders.split("_")[0]
        kept = story.captured - story.refunded
        if status == "confirmed":
            if (story.payments, story.inventory) != ("succeeded", "committed"):
                yield f"confirmed with {story.inventory} stock and a {story.payments} payment"
        elif status in ("rejected", "cancelled"):
            if kept:
                yield f"{status}, and money is kept"
            if story.inventory not in STOCK_IS_BACK:
                yield f"{status}, and stock is {story.inventory}"
        else:
            yield f"stuck: {story.orders}"
        if story.asked and status != "cancelled":
            yield f"{status}, although a cancellation was accepted"

    def end(self, story: Story) -> str:
        """How the order ended."""
        return f"{story.orders}/{story.payments}/{story.captured - story.refunded}"


def _knows(story: Story, reply: str) -> Iterator[Story]:
    """What the gateway did before it gave an answer."""
    match reply:
        case "Succeeded":
            yield story._replace(captured=CAPTURED)
        case "Refunded":
            yield story._replace(refunded=story.captured)
        case "OperatorRefunded":
            for refunded in {min(story.captured, story.refunded + 1), story.captured}:
                yield story._replace(refunded=refunded)
        case _:
            yield story


def small() -> Iterable[Saga]:
    """Seconds each."""
    yield Saga("taken over HTTP", Chances())
    yield Saga("from elsewhere", Chances(), by_http=False)


def full() -> Iterable[Saga]:
    """A minute each."""
    more = Chances(cancels=3, refunds=2, captures=2, restores=1, closures=2)
    yield Saga("taken over HTTP", more)
    yield Saga("from elsewhere", more, by_http=False)
