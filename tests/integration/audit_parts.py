"""What tests of the signed audit trail share: real entries, rounds, and the outsider."""

import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from notifications_audit_parts import migrate
from prometheus_client import REGISTRY

from ironcart.services.audit.app import STREAM_NAMES
from ironcart.services.audit.gateway.folder import Folder
from ironcart.services.audit.handlers.chain import record
from ironcart.services.audit.handlers.checkpoints import read
from ironcart.services.audit.handlers.rounds import Plan, Rounds
from ironcart.toolkit import signing
from ironcart.toolkit.broker import Delivery
from ironcart.toolkit.database import Database
from ironcart.verify.auditing import Report, Request, judge

BEGAN_S = 1_790_000_000.0


def delivery(stream: str, seq: int) -> Delivery:
    """A message as the broker would deliver it."""
    body = {"id": f"{stream}-{seq}", "type": "Told", "aggregate_id": f"ORD-{seq % 7}", "data": seq}
    headers = {"Nats-Msg-Id": f"{stream}-{seq}", "traceparent": "00-0-0-00"}
    text = json.dumps(body).encode()
    return Delivery(stream, seq, "orders.created", text, headers, 1, BEGAN_S + seq / 3, "")


class Audited:
    """A schema of audit with a key and a folder for what is exported."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.export = folder / "checkpoints"
        self.key = folder / "signing.key"
        if not self.key.exists():
            self.public_key = signing.generate(self.key)
        self.public_key = self.key.with_name("signing.key.pub")
        self.database = Database(url, "audit", "test")
        self.seqs = dict.fromkeys(STREAM_NAMES, 0)

    def plan(self, **changes: Any) -> Plan:
        """A plan by which every round signs what has moved."""
        signer, warning = signing.load(self.key)
        assert not warning
        plan = Plan(
            streams=STREAM_NAMES,
            signer=signer,
            target=Folder(self.export),
            every_s=0.0,
            every_entries=1_000_000,
            clock=time.monotonic,
            now=partial(datetime.now, UTC),
        )
        return replace(plan, **changes)

    def rounds(self, **changes: Any) -> Rounds:
        """A replica that signs, with nothing in mind yet."""
        return Rounds(self.database, self.plan(**changes))

    async def keep(self, streams: Sequence[str], count: int) -> None:
        """Have the next messages of these streams come."""
        for stream in streams:
            first = self.seqs[stream] + 1
            batch = [delivery(stream, seq) for seq in range(first, first + count)]
            async with self.database.transaction() as connection:
                await record(batch, connection)
            self.seqs[stream] += count

    async def fill(self, draw: random.Random, checkpoints: int) -> None:
        """Have messages of some streams come, and a checkpoint made, so many times."""
        rounds = self.rounds()
        for _ in range(checkpoints):
            streams = draw.sample(STREAM_NAMES, draw.randint(1, len(STREAM_NAMES)))
            await self.keep(streams, draw.randint(1, 12))
            await rounds.go()

    async def judge(
        self,
        first: int = 1,
        *,
        checkpoints: str = "",
        public_keys: Sequence[Path] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Report:
        """What an outsider says."""
        asked = replace(self.request(), first=first, headers=headers or {})
        if checkpoints:
            asked = replace(asked, checkpoints=checkpoints)
        return await judge(replace(asked, public_keys=public_keys or [self.public_key]))

    def request(self) -> Request:
        """What an outsider is asked: to judge all of it."""
        return Request(
            database_url=self.url, checkpoints=str(self.export), public_keys=[self.public_key]
        )

    def lines(self) -> list[str]:
        """What was exported."""
        return [
            line
            for file in sorted(self.export.glob("*.jsonl"))
            for line in file.read_text().splitlines()
        ]

    async def numbers(self) -> list[int]:
        """The checkpoints in the database."""
        rows = await self.database.fetch("SELECT number FROM checkpoints ORDER BY number")
        return [row["number"] for row in rows]


@pytest.fixture
async def audited(database_url: str, tmp_path: Path) -> AsyncIterator[Audited]:
    """An empty one."""
    await migrate(database_url, "audit")
    found = Audited(database_url, tmp_path)
    yield found
    await found.database.close()


def waits(step: str) -> float:
    """Seconds, as the metric says."""
    found = REGISTRY.get_sample_value("ironcart_audit_checkpoint_wait_seconds", {"step": step})
    assert found is not None
    return found


def is_signing() -> bool:
    """What the metric says."""
    return REGISTRY.get_sample_value("ironcart_audit_signing") == 1


def conflicts() -> float:
    """How many the metric has counted."""
    return REGISTRY.get_sample_value("ironcart_audit_checkpoint_conflicts_total") or 0


async def whole(audited: Audited) -> None:
    """Every checkpoint is in the database and in the export, once, and an outsider agrees."""
    numbers = await audited.numbers()
    assert numbers == list(range(1, len(numbers) + 1))
    found = [checkpoint.number for line in audited.lines() if (checkpoint := read(line))]
    assert found == numbers
    report = await audited.judge()
    assert (report.faults, report.unjudged) == ([], [])
