"""One verification: wait for quiet, collect everything, judge every invariant."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from ironcart.verify.checks.audit import Trail, audit
from ironcart.verify.checks.continuity import continuity
from ironcart.verify.checks.edge import idempotent_edge, none_lost
from ironcart.verify.checks.hidden import nothing_hidden
from ironcart.verify.checks.histories import Histories
from ironcart.verify.checks.mail import mail
from ironcart.verify.checks.money import charged_once, money
from ironcart.verify.checks.states import state_machine
from ironcart.verify.checks.stock import stock
from ironcart.verify.databases import Connection, count_open, database, read_tables
from ironcart.verify.facts import Backlog, Facts
from ironcart.verify.findings import Finding
from ironcart.verify.gateway import read_charges, read_mail
from ironcart.verify.loadlog import log_files, read_logs
from ironcart.verify.rundata import Running, read_run
from ironcart.verify.streams import broker, read_lag, read_streams

QUIET_POLL_S = 0.25

Tell = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """Every finding, how long the system took to come to rest, and how long judging took."""

    findings: list[Finding]
    quiet: bool
    settled_s: float
    judged_s: float

    @property
    def ok(self) -> bool:
        """Whether every invariant holds."""
        return all(finding.ok for finding in self.findings)

    def lines(self) -> list[str]:
        """Return the report for a person to read."""
        waited = (
            f"quiet after {self.settled_s:.1f} s"
            if self.quiet
            else f"NOT quiet after {self.settled_s:.1f} s: what follows is a moving picture"
        )
        broken = [finding.name for finding in self.findings if not finding.ok]
        verdict = f"BROKEN: {', '.join(broken)}" if broken else "every invariant holds"
        return [
            waited,
            *(line for finding in self.findings for line in finding.lines()),
            f"{verdict} (judged in {self.judged_s:.1f} s)",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the report for a machine to read."""
        return {
            "ok": self.ok,
            "quiet": self.quiet,
            "settled_s": round(self.settled_s, 3),
            "judged_s": round(self.judged_s, 3),
            "findings": [finding.as_json() for finding in self.findings],
        }


async def verify(
    data: Path, *, settle_s: float, expected_dead_letters: int = 0, tell: Tell = lambda _: None
) -> Report:
    """Judge the system whose folder is `data` after waiting at most `settle_s` for quiet.

    Raises `CannotReadError` when a source is missing; `tell` hears what is being waited for.
    """
    running = read_run(data)
    started = time.monotonic()
    async with broker(running.nats_urls) as client, database(running.postgres_url) as connection:
        backlog = await settle(client, connection, settle_s=settle_s, tell=tell)
        settled = time.monotonic()
        facts, histories, trail = await _collect(data, running, client, connection)
    facts.backlog = backlog
    findings = judge(
        facts, histories, trail, expected_dead_letters=expected_dead_letters, settle_s=settle_s
    )
    return Report(
        findings=findings,
        quiet=not backlog.reasons(),
        settled_s=settled - started,
        judged_s=time.monotonic() - settled,
    )


async def settle(
    client: Client, connection: Connection, *, settle_s: float, tell: Tell = lambda _: None
) -> Backlog:
    """Wait until nothing moves in two looks in a row, at most `settle_s`; return the last look."""
    deadline = time.monotonic() + settle_s
    before: Backlog | None = None
    while True:
        consumers, last_seqs = await read_lag(client)
        open_orders, unpublished, jobs = await count_open(connection)
        now = Backlog(open_orders, consumers, unpublished, jobs, last_seqs)
        reasons = now.reasons()
        if not reasons and before == now:
            return now
        if time.monotonic() >= deadline:
            return now
        if reasons:
            tell(f"waiting for quiet: {reasons[0]}")
        before = now
        await asyncio.sleep(QUIET_POLL_S)


def judge(
    facts: Facts,
    histories: Histories,
    trail: Trail,
    *,
    expected_dead_letters: int = 0,
    settle_s: float = 0,
) -> list[Finding]:
    """Return the finding of every invariant, I1 to I10; pure."""
    return [
        none_lost(facts),
        charged_once(facts),
        money(facts),
        stock(facts),
        state_machine(facts),
        mail(facts),
        idempotent_edge(facts),
        audit(trail, histories, facts.dead_letters),
        nothing_hidden(facts, expected_dead_letters=expected_dead_letters, settle_s=settle_s),
        continuity(facts, histories),
    ]


async def _collect(
    data: Path, running: Running, client: Client, connection: Connection
) -> tuple[Facts, Histories, Trail]:
    """Read everything, in the order in which facts travel.

    Promises first, then the stream, then the database (which commits before it publishes), so that
    nothing looks lost only because it happened while we were reading.
    """
    facts = Facts(log=read_logs(data))
    sizes = [path.stat().st_size for path in log_files(data)]
    facts.streams, facts.dead_letters = await read_streams(client)
    histories = Histories(facts.streams)
    trail = Trail(facts.streams)
    await read_tables(connection, facts, histories, trail)
    facts.charges = await read_charges(running.sandbox_url)
    facts.mail = await read_mail(running.sandbox_url)
    unchanged = sizes == [path.stat().st_size for path in log_files(data)]
    facts.log_after = facts.log if unchanged else read_logs(data)
    return facts, histories, trail
