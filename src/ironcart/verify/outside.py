"""One verification: wait for quiet, collect everything, judge every invariant."""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.errors import Error as NatsError

from ironcart.verify.checks.audit import Trail, audit
from ironcart.verify.checks.continuity import continuity
from ironcart.verify.checks.edge import idempotent_edge, none_lost
from ironcart.verify.checks.evidence import evidence
from ironcart.verify.checks.hidden import nothing_hidden
from ironcart.verify.checks.histories import Histories
from ironcart.verify.checks.liveness import liveness
from ironcart.verify.checks.mail import mail
from ironcart.verify.checks.money import charged_once, money
from ironcart.verify.checks.states import state_machine
from ironcart.verify.checks.stock import stock
from ironcart.verify.databases import Connection, count_open, database, read_tables, snapshot
from ironcart.verify.facts import Backlog, Facts
from ironcart.verify.findings import Finding
from ironcart.verify.gateway import read_charges, read_mail
from ironcart.verify.loadlog import log_files, read_logs
from ironcart.verify.metrics import read_metrics
from ironcart.verify.rundata import Running, read_run
from ironcart.verify.streams import broker, read_lag, read_streams

QUIET_POLL_S = 0.25
# A system in which nothing was published for so long does not move any more.
STILL_AFTER_S = 3.0

Tell = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """Every finding, how long the system took to come to rest, and how long judging took."""

    findings: list[Finding]
    quiet: bool
    moving: bool
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
            else f"NOT quiet after {self.settled_s:.1f} s: {self._unrest()}"
        )
        broken = [finding.name for finding in self.findings if not finding.ok]
        verdict = f"BROKEN: {', '.join(broken)}" if broken else "every invariant holds"
        return [
            waited,
            *(line for finding in self.findings for line in finding.lines()),
            f"{verdict} (judged in {self.judged_s:.1f} s)",
        ]

    def _unrest(self) -> str:
        if self.moving:
            return "work goes on (is load running?); what is only late is not held against it"
        return "nothing moves any more; what is late is held to be lost"

    def as_json(self) -> dict[str, Any]:
        """Return the report for a machine to read."""
        return {
            "ok": self.ok,
            "quiet": self.quiet,
            "moving": self.moving,
            "settled_s": round(self.settled_s, 3),
            "judged_s": round(self.judged_s, 3),
            "findings": [finding.as_json() for finding in self.findings],
        }


async def verify(
    data: Path,
    *,
    settle_s: float,
    expected_dead_letters: int = 0,
    terminal_within_s: float | None = None,
    tell: Tell = lambda _: None,
) -> Report:
    """Judge the system whose folder is `data` after waiting at most `settle_s` for quiet.

    Raises `CannotReadError` when a source is missing; `tell` hears what is being waited for.
    """
    running = read_run(data)
    started = time.monotonic()
    tls = running.tls()
    async with (
        database(running.postgres_url) as connection,
        broker(running.nats_urls, tls) as client,
    ):
        backlog, moves = await settle(client, connection, settle_s=settle_s, tell=tell)
        settled = time.monotonic()
        collector = _Collector(data, running, client, connection)
        facts, histories, trail = await collector.collect(backlog, moves=moves)
    findings = judge(
        facts,
        histories,
        trail,
        expected_dead_letters=expected_dead_letters,
        terminal_within_s=terminal_within_s,
        settle_s=settle_s,
    )
    return Report(
        findings=findings,
        quiet=not backlog.reasons(),
        moving=facts.moving,
        settled_s=settled - started,
        judged_s=time.monotonic() - settled,
    )


async def settle(
    client: Client, connection: Connection, *, settle_s: float, tell: Tell = lambda _: None
) -> tuple[Backlog, bool]:
    """Wait until nothing is left to do in two looks in a row, at most `settle_s`.

    Returns the last look, and whether the streams have grown within the last few seconds. A broker
    that is electing a leader is given the same time. Raises `CannotReadError` when it stays away.
    """
    deadline = time.monotonic() + settle_s
    before: Backlog | None = None
    moved_at = -math.inf
    while True:
        try:
            consumers, last_seqs = await read_lag(client)
        except NatsError as error:
            if time.monotonic() >= deadline:
                raise
            tell(f"waiting for the broker: {error!r}")
            before = None
            await asyncio.sleep(QUIET_POLL_S)
            continue
        open_orders, unpublished, jobs = await count_open(connection)
        now = Backlog(open_orders, consumers, unpublished, jobs, last_seqs)
        reasons = now.reasons()
        if before and before.last_seqs != last_seqs:
            moved_at = time.monotonic()
        if before and ((before == now and not reasons) or time.monotonic() >= deadline):
            return now, bool(reasons) and time.monotonic() - moved_at < STILL_AFTER_S
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
    terminal_within_s: float | None = None,
    settle_s: float = 0,
) -> list[Finding]:
    """Return the finding of every invariant, I1 to I12; pure."""
    return [
        none_lost(facts),
        charged_once(facts),
        money(facts),
        stock(facts),
        state_machine(facts),
        mail(facts),
        idempotent_edge(facts),
        audit(trail, histories),
        nothing_hidden(facts, expected_dead_letters=expected_dead_letters, settle_s=settle_s),
        continuity(facts, histories, trail.older_counts),
        liveness(facts, terminal_within_s=terminal_within_s),
        evidence(facts),
    ]


@dataclass(frozen=True, slots=True)
class _Collector:
    data: Path
    running: Running
    client: Client
    connection: Connection

    async def collect(self, backlog: Backlog, *, moves: bool) -> tuple[Facts, Histories, Trail]:
        """Read everything in an order that makes nothing look lost that is only on its way.

        Promises first; then the database, as one snapshot, whose facts are committed before they
        are published; then the streams and the gateway, which may only know more.
        """
        facts = Facts(log=read_logs(self.data), backlog=backlog)
        sizes = self._log_sizes()
        async with snapshot(self.connection):
            facts.streams, facts.dead_letters = await read_streams(self.client)
            grown = any(
                stream.last_seq != backlog.last_seqs[name] for name, stream in facts.streams.items()
            )
            facts.moving = moves or grown
            histories = Histories(facts.streams, facts.dead_letters, moving=facts.moving)
            trail = Trail(facts.streams, moving=facts.moving)
            await read_tables(self.connection, facts, histories, trail)
        facts.metrics = await read_metrics(self.running.service_urls, self.running.tls())
        facts.charges = await read_charges(self.running.sandbox_url)
        facts.mail = await read_mail(self.running.sandbox_url)
        unchanged = sizes == self._log_sizes()
        facts.log_after = facts.log if unchanged else read_logs(self.data)
        return facts, histories, trail

    def _log_sizes(self) -> list[int]:
        return [path.stat().st_size for path in log_files(self.data)]
