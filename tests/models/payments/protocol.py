"""Everything that may happen to one payment, and what must hold whatever happens."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ironcart.services.payments.gateway import Reply
from ironcart.toolkit.outcomes import Fact
from models.explorer import Step
from models.interned import Interned
from models.payments import rules
from models.payments.service import (
    CANCELLATION,
    REFUND,
    RESERVATION,
    UNHEARD_OF,
    WEBHOOK,
    Bug,
    Decided,
    Service,
)
from models.payments.stripe_side import Books, Executed, Request, execute, intent_id
from models.payments.world import COMING, SENT, Backup, Budget, Worker, World

ATTEMPTS_MAX = 3
BY_CHANCE = frozenset({REFUND, WEBHOOK})  # Nobody may wait for these.
LEASED = Worker(call=-1, phase=COMING, live=True)

Steps = Iterator[Step[World]]


@dataclass(eq=False)
class Protocol:
    """The rules as they are; a variant changes the service or one of the flags."""

    name: str
    budget: Budget = field(default_factory=Budget)
    service: Service = field(default_factory=Service)
    cancels: bool = True
    refunds: bool = False
    webhooks: bool = False
    only_live_settle: bool = True
    voids_leases: bool = True

    def __post_init__(self) -> None:
        self._books: Interned[Books] = Interned(Books())
        self._requests: Interned[Request] = Interned()
        self._told: Interned[tuple[Fact, ...]] = Interned(())
        self._execute = cache(self._executed)

    def start(self) -> World:
        """Nothing is known; the reservation comes, and whatever else was configured."""
        wanted = {
            RESERVATION: True,
            CANCELLATION: self.cancels,
            REFUND: self.refunds,
            WEBHOOK: self.webhooks,
        }
        return World(UNHEARD_OF, 0, self.budget, tuple(each for each in wanted if wanted[each]))

    def steps(self, world: World) -> Steps:
        """Deliveries, the replicas, the gateway, and the faults that are left."""
        yield from self._deliveries(world)
        yield from self._leases(world)
        for at, worker in enumerate(world.workers):
            if worker is not None:
                yield from self._works(world, at, worker)
                yield from self._leaves(world, at, worker)
        yield from self._strays(world)
        yield from self._reconciles(world)
        yield from self._misfortunes(world)
        yield from self._restores(world)

    # What happens to the database.

    def _deliveries(self, world: World) -> Steps:
        for what in world.due:
            decided = self.service.decide(world.row, what, world.leased, world.restored)
            if decided.row == world.row and what in BY_CHANCE:
                continue
            due = tuple(each for each in world.due if each != what)
            after = self._commit(world, decided, due=due)
            yield Step(f"{what} arrives", after, fault=what in BY_CHANCE)

    def _commit(self, world: World, decided: Decided, **changes: Any) -> World:
        if decided.facts:
            facts = self._told[world.told] + decided.facts
            changes["told"] = self._told.number(facts)
        if not self.service.has_job(decided.row):
            changes |= {"attempts": 0, "days": 0}
        return world._replace(row=decided.row, **changes)

    def _leases(self, world: World) -> Steps:
        if not self.service.has_job(world.row) or world.workers[1] is not None:
            return
        taken = any(worker is not None and worker.live for worker in world.workers)
        if taken and not world.budget.timeouts:
            return
        if taken:
            world = world._replace(budget=world.budget.less("timeouts"))
        # The second place is the free one: an idle replica comes last. Older leases are void.
        other = world.workers[0] and world.workers[0]._replace(live=False)
        world = world._replace(workers=(other, None), leased=True)
        worker = self._working(self.service.lease(world.row, world.attempts, world.days))
        label = "a lease runs out and the job is leased" if taken else "the job is leased"
        yield Step(label, world.with_worker(1, worker), fault=taken)

    def _working(self, call: int, before: Worker = LEASED) -> Worker:
        asks = isinstance(self.service.next(call), Request)
        return before._replace(call=call, phase=SENT if asks else COMING)

    # What a replica does, and what may become of it.

    def _works(self, world: World, at: int, worker: Worker) -> Steps:
        then = self.service.next(worker.call)
        if isinstance(then, Request):
            for done in self._execute(world.books, self._requests.number(then)):
                if done.declines and not world.budget.declines:
                    continue
                after = self._with_books(world, done)
                call = self.service.hear(worker.call, done.answer)
                label = f"{then.verb}: {done.answer[0]}"
                yield Step(label, after.with_worker(at, self._working(call, worker)))
        elif then is None or isinstance(then, Bug):
            yield Step("the call gives up until later", self._give_back(world, at, worker))
        else:
            yield self._settles(world, at, worker, then)

    def _settles(self, world: World, at: int, worker: Worker, reply: Reply) -> Step[World]:
        label = f"{type(reply).__name__} is settled"
        if not worker.live and self.only_live_settle:
            return Step(f"{label}: no, the lease is lost", world.with_worker(at, None))
        decided = self.service.settle(world.row, reply)
        goes_on = self.service.has_job(decided.row) and worker.live
        call = self.service.lease(decided.row, 0, world.days) if goes_on else None
        onwards = None if call is None else self._working(call, worker)
        leased = goes_on or (world.leased and not worker.live)
        after = self._commit(world, decided, leased=leased, attempts=0)
        return Step(label, after.with_worker(at, onwards))

    def _give_back(self, world: World, at: int, worker: Worker) -> World:
        if worker.live:
            attempts = min(world.attempts + 1, ATTEMPTS_MAX)
            world = world._replace(leased=False, attempts=attempts)
        return world.with_worker(at, None)

    def _leaves(self, world: World, at: int, worker: Worker) -> Steps:
        left = [("", world)]
        if worker.phase == SENT:
            request = self.service.next(worker.call)
            assert isinstance(request, Request)
            left = [(f" before {request.verb} was sent", world)]
            if not request.reads_only:
                number = self._requests.number(request)
                stray = tuple(sorted((*world.abandoned, number)))
                left.append((f", {request.verb} is late", world._replace(abandoned=stray)))
        for how, after in left:
            if world.budget.timeouts:
                spent = after._replace(budget=world.budget.less("timeouts"))
                gone = self._give_back(spent, at, worker)
                yield Step(f"no answer in time{how}", gone, fault=True)
            if world.budget.crashes:
                gone = after._replace(budget=world.budget.less("crashes")).with_worker(at, None)
                yield Step(f"a replica dies{how}", gone, fault=True)

    # What happens at the gateway by itself.

    def _strays(self, world: World) -> Steps:
        for at, number in enumerate(world.abandoned):
            rest = (*world.abandoned[:at], *world.abandoned[at + 1 :])
            for done in self._execute(world.books, number):
                if done.declines and not world.budget.declines:
                    continue
                after = self._with_books(world, done)._replace(abandoned=rest)
                yield Step(f"late {self._requests[number].verb}: {done.answer[0]}", after)

    def _with_books(self, world: World, done: Executed) -> World:
        budget = world.budget.less("declines") if done.declines else world.budget
        return world._replace(books=self._books.number(done.books), budget=budget)

    def _executed(self, books: int, request: int) -> tuple[Executed, ...]:
        return tuple(execute(self._books[books], self._requests[request]))

    def _misfortunes(self, world: World) -> Steps:
        books, budget = self._books[world.books], world.budget
        if budget.prunes and books.keys:
            number = self._books.number(books.forget_keys())
            after = world._replace(books=number, budget=budget.less("prunes"))
            yield Step("keys are pruned", after, fault=True)
        if budget.days and not world.abandoned and not any(map(_asks, world.workers)):
            # Whatever was under way has arrived or got lost by now.
            number = self._books.number(books.forget_keys())
            row = self.service.rows[world.row]
            days = world.days + (row is not None and row.refund_id is not None)
            after = world._replace(books=number, days=days, budget=budget.less("days"))
            yield Step("a day passes, and keys are pruned", after, fault=True)
        if budget.orphans:
            row = self.service.rows[world.row]
            for at, intent in enumerate(books.intents):
                if intent.status == "open" and (row is None or row.intent_id != intent_id(at)):
                    number = self._books.number(books.cancel(at))
                    after = world._replace(books=number, budget=budget.less("orphans"))
                    yield Step(f"the reconciler cancels orphan {at}", after, fault=True)

    def _reconciles(self, world: World) -> Steps:
        """What the reconciler repairs in our ledger; it never calls for a second charge."""
        for at, intent in enumerate(self._books[world.books].intents):
            decided = self.service.reconcile(world.row, at, intent)
            if decided is not None and decided.row != world.row:
                yield Step("the reconciler finds a difference", self._commit(world, decided))

    def _restores(self, world: World) -> Steps:
        if not world.budget.restores:
            return
        here = Backup(world.row, world.attempts, len(self._told[world.told]))
        if world.backup is None:
            after = world._replace(backup=here)
            if not self.voids_leases:
                after = after.with_workers(lambda worker: worker._replace(backed=worker.live))
            yield Step("a backup is made", after, fault=True)
        elif world.backup != here:
            yield Step("the database is restored", self._restored(world, world.backup), fault=True)

    def _restored(self, world: World, backup: Backup) -> World:
        world = world.with_workers(lambda worker: worker._replace(live=worker.backed, backed=False))
        return world._replace(
            row=self.service.restore(backup.row, self._told[world.told][backup.told :]),
            leased=any(worker is not None and worker.live for worker in world.workers),
            attempts=backup.attempts,
            due=self.start().due,
            backup=None,
            restored=True,
            budget=world.budget.less("restores"),
        )

    # What must hold.

    def broken(self, world: World) -> Iterable[str]:
        """Rules for every moment."""
        yield from rules.broken(
            self.service.rows[world.row],
            self._books[world.books].intents,
            self._told[world.told],
        )
        for worker in world.workers:
            if worker and isinstance(then := self.service.next(worker.call), Bug):
                yield f"the code of the job raises {then.text}"

    def broken_end(self, world: World) -> Iterable[str]:
        """Rules for when nothing is under way any more."""
        return rules.broken_end(
            self.service.rows[world.row],
            self._books[world.books].intents,
            self._told[world.told],
        )

    def end(self, world: World) -> str:
        """How the payment ended."""
        return self.service.state(world.row)


def _asks(worker: Worker | None) -> bool:
    return worker is not None and worker.phase == SENT
