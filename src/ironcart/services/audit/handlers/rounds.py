"""One round after the other: compare with the export, sign what is due, export what is not yet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog
from prometheus_client import Gauge

from ironcart.services.audit.gateway import Sheet, Target
from ironcart.services.audit.handlers.checkpoints import (
    Due,
    Stand,
    adopt,
    disagreements,
    read,
    sign,
)
from ironcart.services.audit.store import Standing, Store
from ironcart.toolkit.database import Database
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.signing import Signer

EXPORTED_AT_ONCE_MAX = 1_000
DAY_CHARACTERS = 10
ANOTHER_CHAIN = (
    "IRONCART_AUDIT_CHECKPOINTS holds other checkpoints than the database: name another place"
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
    """What is signed, by whom, how often and for which place; `clock` is monotonic, in seconds."""

    streams: Sequence[str]
    signer: Signer | None
    target: Target | None
    every_s: float
    every_entries: int
    clock: Callable[[], float]
    now: Callable[[], datetime]


class Rounds:
    """Keeps in mind, between rounds, what was compared, what was exported, and what waits.

    Two replicas may do this at once: one of them signs, and what both export is the same bytes.
    """

    def __init__(self, database: Database, plan: Plan) -> None:
        self._database, self._plan = database, plan
        self._compared: datetime | None = None
        self._exported: int | None = None
        self._newest = (0, plan.clock())
        self._waits_since: dict[str, float | None] = {"sign": None, "export": None}
        self._said = ""
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
        if signer is not None and self._compared != standing.started_at:
            if not await self._compare(standing, signer):
                disagreements.inc(int(self._said != ANOTHER_CHAIN))
                signing.set(0)
                return ANOTHER_CHAIN
            standing = await self._look()
        fault = ""
        if signer is not None:
            fault = await self._sign(standing, signer, last)
        if fault == REFUSALS[Stand.FORGED]:
            return fault
        return await self._export() or fault

    async def _look(self) -> Standing:
        standing = await Store(self._database).standing(self._plan.streams)
        now = self._plan.clock()
        newest = read(standing.line) if standing.line else None
        number = newest.number if newest else 0
        if number != self._newest[0]:
            self._newest = number, now
            self._waits_since["sign"] = None
        if not Due(1, waited=True).met(newest, standing.heads):
            self._waits_since["sign"] = None
        elif self._waits_since["sign"] is None:
            self._waits_since["sign"] = now
        return standing

    async def _compare(self, standing: Standing, signer: Signer) -> bool:
        """Take over what was exported and is not in the database, which may be an older one now.

        Signing before that could give one number to two checkpoints.
        """
        while self._plan.target is not None:
            newest = read(line) if (line := await Store(self._database).last_line()) else None
            lines = await self._plan.target.after(newest.number if newest else 0)
            if not lines:
                break
            structlog.get_logger().warning("Takes over exported checkpoints", count=len(lines))
            async with self._database.transaction() as connection:
                if not await adopt(Store(connection), lines, signer):
                    return False
        self._compared, self._exported = standing.started_at, None
        return True

    async def _sign(self, standing: Standing, signer: Signer, last: bool) -> str:
        plan = self._plan
        waited = last or plan.clock() - self._newest[1] >= plan.every_s
        due = Due(plan.every_entries, waited=waited)
        newest = read(standing.line) if standing.line else None
        if not due.met(newest, standing.heads) or self._compared is None:
            signing.set(int(self._said not in REFUSALS.values()))
            return self._said if self._said in REFUSALS.values() else ""
        async with self._database.transaction() as connection:
            store = Store(connection)
            stand = await sign(
                store, signer, plan.streams, due, trusted=self._compared, now=plan.now()
            )
        if stand is Stand.FORGED:
            disagreements.inc(int(self._said != REFUSALS[stand]))
        signing.set(int(stand not in REFUSALS))
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
            if not await target.add(sheets):
                disagreements.inc(int(self._said != ANOTHER_CHAIN))
                return ANOTHER_CHAIN
            self._exported = sheets[-1].number
        self._waits_since["export"] = None
        return ""
