"""One round after the other: compare with the export, sign what is due, export what is not yet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog
from prometheus_client import Gauge

from ironcart.services.audit.gateway import Sheet, Target, marks
from ironcart.services.audit.handlers.checkpoints import (
    Checkpoint,
    Due,
    Stand,
    adopt,
    disagreements,
    is_signed,
    leads,
    mark_of,
    read,
    short_of,
    sign,
    unlinked,
)
from ironcart.services.audit.store import Standing, Store
from ironcart.toolkit import signing as keys
from ironcart.toolkit.database import Database
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.signing import Signer

EXPORTED_AT_ONCE_MAX = 1_000
DAY_CHARACTERS = 10
ANOTHER_CHAIN = (
    "IRONCART_AUDIT_CHECKPOINTS holds other checkpoints than the database: name another place"
)
ANOTHER_KEY = (
    "IRONCART_AUDIT_CHECKPOINTS ends with checkpoints of a key that is not ours: start audit with"
    " that key, or take them away if nobody of yours signed them"
)
EMPTY = (
    "IRONCART_AUDIT_CHECKPOINTS is empty, and was not: mount it again, or restart audit to have"
    " all of them exported anew"
)
LOST = (
    "checkpoint {number}, which was seen, is neither in the database nor exported as it was:"
    " nothing is signed. Bring it back; if it is gone for good, {then}restart audit"
)
MISSING = "checkpoint {number} is neither in the database nor exported: bring it back"
UNLINKED = (
    "the chain of {stream} has no link where checkpoint {number} was signed: nothing is signed"
    " until it is there again"
)
REFUSALS = {
    Stand.FORGED: "the newest checkpoint in the database was not signed by the key it names",
    Stand.RETIRED: "another key has signed since: give every replica the newest key",
}

signing = Gauge("ironcart_audit_signing", "1 while this replica may sign checkpoints")
waiting = Gauge(
    "ironcart_audit_checkpoint_wait_seconds",
    "how long what is chained waits to be signed, and what is signed to be exported",
    ["step"],
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is signed, by whom, how often and for which place; `clock` is monotonic, in seconds.

    `mark_file` keeps what was signed last from one start to the next.
    """

    streams: Sequence[str]
    signer: Signer | None
    target: Target | None
    every_s: float
    every_entries: int
    clock: Callable[[], float]
    now: Callable[[], datetime]
    mark_file: Path | None = None


class Rounds:
    """Keeps in mind, between rounds, what was compared, what was exported, and what waits.

    Two replicas may do this at once: one of them signs, and what both export is the same bytes.
    The newest checkpoint of our key that it has seen has to stay where it was: who rules the
    database and the export cannot take it back, and have another one of its number signed.
    """

    def __init__(self, database: Database, plan: Plan) -> None:
        self._database, self._plan = database, plan
        self._compared: datetime | None = None
        self._exported: int | None = None
        self._newest = (0, plan.clock())
        self._waits_since: dict[str, float | None] = {"sign": None, "export": None}
        self._said = ""
        self._mark_file = plan.mark_file
        self._mark = keys.recall(plan.mark_file) if plan.mark_file is not None else None
        self._took_over = 0
        signing.set(0)

    async def go(self, *, last: bool = False) -> None:
        """Do one round; `last` signs whatever has moved. An outage is told once, and waited out."""
        try:
            fault = await self._go(last)
        except Unavailable as error:
            fault = str(error)
        if fault and fault != self._said:
            structlog.get_logger().error("Cannot sign or export checkpoints", error=fault)
        self._said = fault
        for step, since in self._waits_since.items():
            waiting.labels(step).set(self._plan.clock() - since if since is not None else 0)

    async def close(self) -> None:
        """Let go of what the target keeps open."""
        if self._plan.target is not None:
            await self._plan.target.close()

    async def _go(self, last: bool) -> str:
        """Returns what is wrong, which waiting will not mend."""
        signer = self._plan.signer
        standing = await self._look()
        fault = ""
        if signer is not None:
            if not await self._follows(standing, signer):
                self._compared = None
            if self._compared != standing.started_at:
                if fault := await self._compare(standing, signer):
                    return self._refuse(fault)
                before = self._newest[0]
                standing = await self._look()
                if self._newest[0] > before:
                    self._took_over = self._newest[0]
                if not await self._follows(standing, signer):
                    return self._refuse(self._lost())
            fault = await self._sign(standing, signer, last)
        unlinked_fault = await self._unlinked(standing)
        signing.set(int(signer is not None and not fault and not unlinked_fault))
        if fault == REFUSALS[Stand.FORGED]:
            return fault
        if (told := await self._export() or fault) or not unlinked_fault:
            return told
        # Of a database that was restored it is no wonder: the chain is folded again.
        restored = self._newest[0] <= self._took_over
        return unlinked_fault if restored else self._disagree(unlinked_fault)

    def _refuse(self, fault: str) -> str:
        signing.set(0)
        return self._disagree(fault)

    def _disagree(self, fault: str) -> str:
        """Counts a fault once, as long as it lasts."""
        disagreements.inc(int(self._said != fault))
        return fault

    def _lost(self) -> str:
        assert self._mark is not None
        then = f"remove {self._mark_file} and " if self._mark_file is not None else ""
        return LOST.format(number=self._mark.number, then=then)

    async def _unlinked(self, standing: Standing) -> str:
        newest = read(standing.line) if standing.line else None
        if newest is None or not (stream := await unlinked(Store(self._database), newest)):
            return ""
        return UNLINKED.format(stream=stream, number=newest.number)

    async def _look(self) -> Standing:
        standing = await Store(self._database).standing(self._plan.streams)
        now = self._plan.clock()
        newest = read(standing.line) if standing.line else None
        number = newest.number if newest else 0
        if number != self._newest[0]:
            self._newest = number, now
            self._waits_since["sign"] = None
        idle = not Due(1, waited=True).met(newest, standing.heads)
        if idle and not short_of(newest, standing.heads):
            self._waits_since["sign"] = None
        elif self._waits_since["sign"] is None:
            self._waits_since["sign"] = now
        return standing

    async def _follows(self, standing: Standing, signer: Signer) -> bool:
        """Whether what was marked is in the database, and leads to its newest checkpoint, which is
        marked instead if our key has signed it."""
        newest = read(standing.line) if standing.line else None
        ours = newest is not None and newest.key == signer.key_id and is_signed(newest, signer)
        if self._mark is not None and (newest is None or mark_of(newest) != self._mark):
            end = newest.number if newest is not None and ours else 0
            if not await leads(Store(self._database), self._mark, end):
                return False
        if newest is not None and ours:
            await self._remember(newest)
        return True

    async def _remember(self, newest: Checkpoint) -> None:
        if (mark := mark_of(newest)) == self._mark:
            return
        self._mark = mark
        if self._mark_file is None:
            return
        try:
            await marks.remember(self._mark_file, mark)
        except Unavailable as error:
            structlog.get_logger().warning(
                "Keeps what was signed last in memory alone, until it restarts", error=str(error)
            )
            # What it says is no longer the newest, and still holds.
            self._mark_file = None

    async def _compare(self, standing: Standing, signer: Signer) -> str:
        """Take over what was exported and is not in the database, which may be an older one now;
        returns what is wrong with it. Signing before that could give one number to two checkpoints.
        """
        others: list[str] = []
        while self._plan.target is not None:
            line = others[-1] if others else await Store(self._database).last_line()
            newest = read(line) if line is not None else None
            number = newest.number if newest else 0
            lines = [*others, *await self._plan.target.after(number)]
            if len(lines) == len(others):
                break
            async with self._database.transaction() as connection:
                left = await adopt(Store(connection), lines, signer)
            if left is None:
                return ANOTHER_CHAIN
            others = left
            if taken := len(lines) - len(left):
                structlog.get_logger().warning("Took over exported checkpoints", count=taken)
        if others:
            return ANOTHER_KEY
        self._compared, self._exported = standing.started_at, None
        return ""

    async def _sign(self, standing: Standing, signer: Signer, last: bool) -> str:
        plan = self._plan
        waited = last or plan.clock() - self._newest[1] >= plan.every_s
        due = Due(plan.every_entries, waited=waited)
        newest = read(standing.line) if standing.line else None
        if not due.met(newest, standing.heads) or self._compared is None:
            return self._said if self._said in REFUSALS.values() else ""
        async with self._database.transaction() as connection:
            trusted = self._compared, standing.line
            store = Store(connection)
            stand = await sign(store, signer, plan.streams, due, trusted=trusted, now=plan.now())
        if isinstance(stand, Checkpoint):
            # Not as the database has it by now: as it was signed.
            await self._remember(stand)
            stand = Stand.RESTS
        if stand is Stand.FORGED:
            self._disagree(REFUSALS[stand])
        await self._look()
        return REFUSALS.get(stand, "")

    async def _export(self) -> str:
        target, (number, _) = self._plan.target, self._newest
        if target is None:
            return ""
        if self._exported is None:
            self._exported = await target.last(number)
        while self._exported < number:
            if self._waits_since["export"] is None:
                self._waits_since["export"] = self._plan.clock()
            store = Store(self._database)
            lines = await store.checkpoints_after(self._exported, EXPORTED_AT_ONCE_MAX)
            found = [(read(line), line) for line in lines]
            sheets = [Sheet(c.number, c.at[:DAY_CHARACTERS], line) for c, line in found if c]
            if len(sheets) < len(lines) or not sheets:
                return REFUSALS[Stand.FORGED]
            for place, sheet in enumerate(sheets, start=self._exported + 1):
                if sheet.number != place:
                    return self._disagree(MISSING.format(number=place))
            there = await target.add(sheets)
            newest = read(await store.last_line() or "")
            # What is exported was committed before: more than is in the database is not ours.
            if there is None or newest is None or there > newest.number:
                return self._disagree(ANOTHER_CHAIN)
            if there == 0:
                raise Unavailable(EMPTY)
            if there < self._exported:
                structlog.get_logger().warning("Exports again what is no longer there", last=there)
            self._exported = there
        self._waits_since["export"] = None
        return ""
