"""Commit, publish, sweep, deliver, commit, ack: one service that tells, one with two replicas.

Nothing here is an order's business: only what the toolkit promises of every message.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from models.explorer import Step

# What there is of a fact at the service that tells it; nobody was told that a lost one is taken.
UNKNOWN, COMMITTED, MARKED, LOST = range(4)

TWICE = 2  # As bad as more often.


class Hand(NamedTuple):
    """A message in a replica's hands; `spent` when its transaction is committed."""

    seq: int
    spent: bool = False
    acked: bool = False


class Faults(NamedTuple):
    """How often each may still strike."""

    crashes: int = 1
    lost: int = 1  # An answer to a publish, or an ack, that nobody gets.
    windows: int = 1  # The broker forgets which ids it has seen.
    slow: int = 1  # A message is delivered again while somebody works on it.

    def less(self, fault: str) -> "Faults":
        """One of a kind is used up."""
        return self._replace(**{fault: getattr(self, fault) - 1})


class Wire(NamedTuple):
    """A state. Facts are numbered from 0, sequences are places in `stream`."""

    rows: tuple[int, ...]
    faults: Faults
    waiting: frozenset[int] = frozenset()  # Committed, and about to be published by its process.
    drafts: frozenset[int] = frozenset()  # Published, and about to be committed: see the variant.
    stream: tuple[int, ...] = ()
    window: frozenset[int] = frozenset()
    hands: tuple[Hand | None, Hand | None] = (None, None)
    acks: frozenset[int] = frozenset()  # On their way to the broker.
    acked: frozenset[int] = frozenset()
    inbox: frozenset[int] = frozenset()
    effects: tuple[int, ...] = ()  # How often each fact took effect; `TWICE` is often.

    def hold(self, at: int, hand: Hand | None, **changes: Any) -> "Wire":
        """Put a message into a replica's hands. The two are alike, so their order means nothing."""
        pair = sorted((hand, self.hands[1 - at]), key=lambda each: each or (), reverse=True)
        return self._replace(hands=(pair[0], pair[1]), **changes)

    def fail(self, fault: str) -> "Wire":
        """A fault strikes."""
        return self._replace(faults=self.faults.less(fault))


Steps = Iterator[Step[Wire]]


@dataclass(eq=False)
class Transport:
    """The rules as they are; a variant turns one of them off."""

    name: str
    facts: int = 2
    faults: Faults = Faults()  # noqa: RUF009 - a tuple, which nobody can change
    sweeps: bool = True
    has_inbox: bool = True
    acks_after_commit: bool = True
    publishes_after_commit: bool = True

    def start(self) -> Wire:
        """Nothing has been told."""
        return Wire((UNKNOWN,) * self.facts, self.faults, effects=(0,) * self.facts)

    def steps(self, wire: Wire) -> Steps:
        """Everything that may happen."""
        yield from self._tells(wire)
        yield from self._publishes(wire)
        for at, hand in enumerate(wire.hands):
            if hand is None:
                yield from self._delivers(wire, at)
            else:
                yield from self._handles(wire, at, hand)
        yield from self._acks(wire)
        if wire.faults.windows and wire.window:
            after = wire.fail("windows")._replace(window=frozenset())
            yield Step("the dedupe window is over", after, fault=True)

    # The service that tells.

    def _tells(self, wire: Wire) -> Steps:
        if UNKNOWN in wire.rows:
            fact = wire.rows.index(UNKNOWN)
            if self.publishes_after_commit:
                after = _commit(wire, fact)._replace(waiting=wire.waiting | {fact})
                yield Step(f"{fact} is committed", after)
            elif fact not in wire.drafts:
                after = _stored(wire, fact)._replace(drafts=wire.drafts | {fact})
                yield Step(f"{fact} is published before its commit", after)
        for fact in wire.drafts:
            after = _commit(wire, fact)._replace(drafts=wire.drafts - {fact})
            yield Step(f"{fact} is committed", _mark(after, fact))
        if wire.faults.crashes and (wire.waiting or wire.drafts):
            gone = wire.fail("crashes")._replace(waiting=frozenset(), drafts=frozenset())
            rows = tuple(LOST if fact in wire.drafts else row for fact, row in enumerate(wire.rows))
            yield Step("the telling service dies", gone._replace(rows=rows), fault=True)

    def _publishes(self, wire: Wire) -> Steps:
        sweepable = {fact for fact, row in enumerate(wire.rows) if row == COMMITTED}
        for fact in wire.waiting:
            told = _stored(wire, fact)._replace(waiting=wire.waiting - {fact})
            yield Step(f"{fact} is published", _mark(told, fact))
            if wire.faults.lost:
                yield Step(f"{fact} is published, the answer lost", told.fail("lost"), fault=True)
        for fact in sweepable if self.sweeps else ():
            told = _stored(wire, fact)
            yield Step(f"{fact} is swept", _mark(told, fact))
            if wire.faults.lost and told != wire:
                yield Step(f"{fact} is swept, the answer lost", told.fail("lost"), fault=True)

    # The service that listens.

    def _delivers(self, wire: Wire, at: int) -> Steps:
        if at and wire.hands[0] is None:
            return  # The replicas are alike: the first that is free takes it.
        held = wire.acks | {hand.seq for hand in wire.hands if hand is not None}
        for seq, fact in enumerate(wire.stream):
            if seq in wire.acked:
                continue
            label = f"{fact} is delivered"
            if seq not in held:
                yield Step(label, wire.hold(at, Hand(seq)))
            elif wire.faults.slow:
                yield Step(f"{label} again", wire.fail("slow").hold(at, Hand(seq)), fault=True)

    def _handles(self, wire: Wire, at: int, hand: Hand) -> Steps:
        fact = wire.stream[hand.seq]
        if not hand.spent:
            if self.acks_after_commit or hand.acked:
                yield Step(f"{fact} takes effect", self._effect(wire, at, hand))
            else:
                early = wire.hold(at, hand._replace(acked=True), acks=wire.acks | {hand.seq})
                yield Step(f"{fact} is acked before its commit", early)
        else:
            acks = wire.acks if hand.acked else wire.acks | {hand.seq}
            yield Step(f"{fact} is acked", wire.hold(at, None, acks=acks))
        if wire.faults.crashes:
            yield Step("a replica dies", wire.fail("crashes").hold(at, None), fault=True)

    def _effect(self, wire: Wire, at: int, hand: Hand) -> Wire:
        fact = wire.stream[hand.seq]
        known = self.has_inbox and fact in wire.inbox
        times = wire.effects[fact] + (not known)
        effects = _with(wire.effects, fact, min(times, TWICE))
        spent = hand._replace(spent=True)
        return wire.hold(at, spent, inbox=wire.inbox | {fact}, effects=effects)

    def _acks(self, wire: Wire) -> Steps:
        for seq in wire.acks:
            after = wire._replace(acks=wire.acks - {seq})
            yield Step("an ack arrives", after._replace(acked=wire.acked | {seq}))
            if wire.faults.lost:
                yield Step("an ack is lost", after.fail("lost"), fault=True)

    # What must hold.

    def broken(self, wire: Wire) -> Iterator[str]:
        """Rules for every moment."""
        if max(wire.effects) > 1:
            yield "a fact took effect twice"

    def broken_end(self, wire: Wire) -> Iterator[str]:
        """Rules for when nothing is under way any more."""
        for row, times in zip(wire.rows, wire.effects, strict=True):
            if row in (COMMITTED, MARKED) and not times:
                yield "a committed fact never took effect"
            if row == LOST and times:
                yield "an effect of what was never committed"

    def end(self, wire: Wire) -> str:
        """How it ended."""
        return f"{sum(wire.effects)} of {self.facts}, {len(wire.stream)} messages"


def _commit(wire: Wire, fact: int) -> Wire:
    return wire._replace(rows=_with(wire.rows, fact, COMMITTED))


def _mark(wire: Wire, fact: int) -> Wire:
    return wire._replace(rows=_with(wire.rows, fact, MARKED))


def _with(row: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    return (*row[:at], value, *row[at + 1 :])


def _stored(wire: Wire, fact: int) -> Wire:
    """The broker takes a message, unless it remembers the id."""
    if fact in wire.window:
        return wire
    return wire._replace(stream=(*wire.stream, fact), window=wire.window | {fact})


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "no inbox": {"has_inbox": False},
    "ack before commit": {"acks_after_commit": False},
    "publish before commit": {"publishes_after_commit": False},
    "no sweeper": {"sweeps": False},
}


def variant(name: str) -> Transport:
    """The protocol with one rule left out."""
    return Transport(name, facts=1, **VARIANTS[name])


def small() -> Iterator[Transport]:
    """Seconds each."""
    yield Transport("one fact", facts=1, faults=Faults(crashes=2, lost=2, windows=2, slow=2))
    yield Transport("two facts", facts=2, faults=Faults(slow=0))


def full() -> Iterator[Transport]:
    """Minutes each."""
    yield Transport("one fact", facts=1, faults=Faults(crashes=3, lost=3, windows=3, slow=3))
    yield Transport("two facts", facts=2)
    yield Transport("two facts, two crashes", facts=2, faults=Faults(crashes=2, slow=0))
    yield Transport("three facts", facts=3, faults=Faults(crashes=1, lost=1, windows=0, slow=0))
