"""What each guarantee costs: the system without it, between two runs of the system as it is."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

import aiohttp

from benchmarks.bed import INSIDE, CannotMeasure
from benchmarks.endtoend import CONNECTIONS, Spell, closed, warm_up
from benchmarks.sizes import QuietBed

ROUNDS = 2
WARM_UP_S = 5.0
# A batch of one takes many times as long to come to its end: less of it shows as much.
ONE_SHARE = 0.5
GATE_S, GATE_WARM_UP_S = 8.0, 3.0
# The goal is 12; a loaded machine with few cores shows less, a broken batch shows 1 to 3.
GATE_RATIO_MIN = 5.0
GATE_CPU_RATIO_MIN = 4.0
# Messages a batch that a busy consumer has to see.
GATE_BATCH_MIN = 10.0
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@dataclass(frozen=True, slots=True)
class Variant:
    """The system with one thing changed.

    `traced` sends traces to a sink; with `auth` each request carries a key, which is looked at.
    """

    name: str
    patches: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    deaf: tuple[str, ...] = ()
    traced: bool = False
    auth: bool = False
    seconds_share: float = 1.0


PLAIN = Variant("plain")
ONE = Variant(
    "batches of one",
    (
        "ironcart.toolkit.loop.consumer:BATCH_MESSAGES_MAX=1",
        "ironcart.toolkit.loop.consumer:LINGER_S_MAX=0.0",
        "ironcart.services.orders.app:ACCEPT_BATCH_MAX=1",
        "ironcart.services.notifications.app:CONTACTS_AT_ONCE_MAX=1",
        "ironcart.toolkit.jobs:LEASE_BATCH_MAX=1",
        "ironcart.toolkit.jobs:SETTLE_BATCH_MAX=1",
        "ironcart.toolkit.jobs:LINGER_S_MAX=0.0",
        "ironcart.toolkit.history.outbox:BATCH_MESSAGES_MAX=1",
        "ironcart.toolkit.history.outbox:LINGER_S_MAX=0.0",
    ),
    # Callers wait rather than being sent away: refusing costs time that is not measured here.
    {"IRONCART_ORDERS_COMMIT_WAIT_S_MAX": "60"},
    seconds_share=ONE_SHARE,
)
WITHOUT = (
    Variant(
        "fsync",
        (
            "ironcart.embedded.postgres:SETTINGS=no_fsync",
            "ironcart.embedded.nats_server:CONFIG=sync_later",
        ),
        {"IRONCART_ALLOW_UNSAFE_BROKER": "true"},
    ),
    Variant("inbox", ("ironcart.toolkit.history.inbox:admit=no_inbox",)),
    Variant("audit", ("ironcart.services.audit.app:SERVICE=no_consumers",), deaf=("audit",)),
    Variant("logging", environ={"IRONCART_LOG_LEVEL": "warning"}),
    Variant("encryption", ("ironcart.toolkit.vault:Vault=in_the_clear",)),
)
# These are off in the system as it is measured: what they add is their price.
WITH = (
    Variant("authentication", auth=True),
    Variant("tracing at 0.1", environ={"OTEL_TRACES_SAMPLER_ARG": "0.1"}, traced=True),
    Variant("tracing at 1.0", environ={"OTEL_TRACES_SAMPLER_ARG": "1.0"}, traced=True),
)
ADDED = frozenset(variant.name for variant in WITH)


@dataclass(frozen=True, slots=True)
class Pair:
    """One variant's spell, and the plain system's just before and just after it."""

    plain: tuple[Spell, Spell]
    changed: Spell

    @property
    def speed(self) -> float:
        """Orders a minute of the plain system over those of the changed one."""
        return _per_minute(self.plain) / self.changed.per_minute

    @property
    def cpu_us(self) -> float:
        """CPU microseconds an order that the changed system needs less (below 0: more)."""
        return mean(spell.cpu_us for spell in self.plain) - self.changed.cpu_us


def _per_minute(spells: Sequence[Spell]) -> float:
    return mean(spell.per_minute for spell in spells)


@dataclass(slots=True)
class Compared:
    """What came of each variant, round by round, each between two spells of the plain system."""

    pairs: dict[str, list[Pair]] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        """The median of plain over changed, in orders a minute."""
        return median(pair.speed for pair in self.pairs[name])

    def rows(self) -> dict[str, dict[str, float]]:
        """The medians of each variant; a price is what having the thing costs, so below 0 is noise.

        `share` is the part of the throughput without the thing that it takes.
        """
        found = {}
        for name, pairs in self.pairs.items():
            sign = -1 if name in ADDED else 1
            ratio = self.ratio(name)
            found[name] = {
                "plain_per_minute": round(median(_per_minute(pair.plain) for pair in pairs)),
                "changed_per_minute": round(median(pair.changed.per_minute for pair in pairs)),
                "cpu_us": round(sign * median(pair.cpu_us for pair in pairs)),
                "cpu_us_least": round(min(sign * pair.cpu_us for pair in pairs)),
                "cpu_us_most": round(max(sign * pair.cpu_us for pair in pairs)),
                "ratio": round(ratio, 3),
                "share": round(1 - 1 / ratio if name in ADDED else 1 - ratio, 3),
            }
        return found

    def lines(self) -> list[str]:
        """Return it for a person."""
        return [
            (
                f"  {name}: {row['cpu_us']:,.0f} us an order ({row['cpu_us_least']:,.0f} to"
                f" {row['cpu_us_most']:,.0f}), {row['share']:.1%} of throughput;"
                f" plain {row['plain_per_minute']:,.0f} a minute, changed"
                f" {row['changed_per_minute']:,.0f}, plain/changed {row['ratio']:.2f}"
            )
            for name, row in self.rows().items()
        ]

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine."""
        return {"rows": self.rows(), "pairs": self.spells()}

    def spells(self) -> dict[str, Any]:
        """Every spell that the figures come from."""
        return {
            name: [
                {
                    "plain": [spell.as_json() for spell in pair.plain],
                    "changed": pair.changed.as_json(),
                }
                for pair in pairs
            ]
            for name, pairs in self.pairs.items()
        }


class Batches(Compared):
    """The plain system against batches of one."""

    @property
    def cpu_ratio(self) -> float:
        """CPU an order with batches of one over that of the plain system; a median."""
        return median(
            pair.changed.cpu_us / mean(spell.cpu_us for spell in pair.plain)
            for pair in self.pairs[ONE.name]
        )

    def lines(self) -> list[str]:
        """Return it for a person."""
        row = self.rows()[ONE.name]
        return [
            (
                f"  orders a minute: {row['plain_per_minute']:,.0f}, with batches of one"
                f" {row['changed_per_minute']:,.0f}: {row['ratio']:.1f} times"
            ),
            f"  batches of one cost {self.cpu_ratio:.1f} times the CPU an order",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine."""
        row = self.rows()[ONE.name]
        kept = {name: row[name] for name in ("plain_per_minute", "changed_per_minute", "ratio")}
        return {**kept, "cpu_ratio": round(self.cpu_ratio, 2), "pairs": self.spells()}


async def measure(
    seconds: float, *, connections: int = CONNECTIONS, rounds: int = ROUNDS
) -> Compared:
    """The price list."""
    return await compare((*WITHOUT, *WITH), seconds, connections=connections, rounds=rounds)


async def batches(
    seconds: float, *, connections: int = CONNECTIONS, rounds: int = ROUNDS
) -> Batches:
    """The system against itself with batches of one everywhere."""
    found = await compare((ONE,), seconds, connections=connections, rounds=rounds)
    return Batches(found.pairs)


async def compare(
    variants: Sequence[Variant], seconds: float, *, connections: int, rounds: int
) -> Compared:
    """Measure plain, variant, plain, variant, ... plain; a new system each time, one at a time."""
    found = Compared({variant.name: [] for variant in variants})
    before = await _spell(PLAIN, seconds, connections)
    for _ in range(rounds):
        for variant in variants:
            changed = await _spell(variant, seconds, connections)
            after = await _spell(PLAIN, seconds, connections)
            found.pairs[variant.name].append(Pair((before, after), changed))
            before = after
    return found


async def _spell(
    variant: Variant, seconds: float, connections: int, warm_up_s: float = WARM_UP_S
) -> Spell:
    async with _traces(variant) as environ:
        bed = QuietBed(
            patches=variant.patches, environ=environ, deaf=variant.deaf, auth=variant.auth
        )
        async with bed:
            share = variant.seconds_share
            await warm_up(bed, warm_up_s * share)
            spell = await closed(bed, seconds * share, connections)
    if not spell.accepted:
        raise CannotMeasure(f"{variant.name}: no order was accepted: {spell.statuses}")
    return spell


@asynccontextmanager
async def _traces(variant: Variant) -> AsyncIterator[Mapping[str, str]]:
    """Give a variant its environment; one that is traced must be seen to have exported."""
    if not variant.traced:
        yield variant.environ
        return
    sink = await asyncio.create_subprocess_exec(
        sys.executable, str(INSIDE / "sink.py"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert sink.stdout is not None
        url = f"http://127.0.0.1:{int(await sink.stdout.readline())}"
        yield {**variant.environ, ENDPOINT: url}
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            if not (await answer.json(content_type=None))["exports"]:
                raise CannotMeasure(f"{variant.name}: no trace was exported")
    finally:
        sink.kill()
        await sink.wait()


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether batching still does what everything rests on: ratios within one run."""

    ratio: float
    cpu_ratio: float
    batches: dict[str, float]

    @property
    def complaints(self) -> list[str]:
        """What is broken; nothing when all is well."""
        found = []
        if self.ratio < GATE_RATIO_MIN:
            found.append(
                f"{self.ratio:.1f} times the orders a minute of batches of one: at least"
                f" {GATE_RATIO_MIN:g} are expected"
            )
        if self.cpu_ratio < GATE_CPU_RATIO_MIN:
            found.append(
                f"batches of one cost {self.cpu_ratio:.1f} times the CPU an order: at least"
                f" {GATE_CPU_RATIO_MIN:g} are expected"
            )
        found += [
            f"{name} sees {size:.1f} messages a batch under load: at least"
            f" {GATE_BATCH_MIN:g} are expected"
            for name, size in self.batches.items()
            if size < GATE_BATCH_MIN and "DEADLETTERS" not in name
        ]
        return found or ([] if self.batches else ["no batch was counted"])

    def lines(self) -> list[str]:
        """Return it for a person."""
        batches = ", ".join(f"{name} {size:.0f}" for name, size in self.batches.items())
        speed = f"{self.ratio:.1f} times the orders a minute"
        return [
            f"  against batches of one: {speed}, {self.cpu_ratio:.1f} times less CPU an order",
            f"  messages a batch: {batches}",
            *(f"  BROKEN: {complaint}" for complaint in self.complaints),
        ]

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine."""
        kept = {name: getattr(self, name) for name in self.__slots__}
        return {**kept, "complaints": self.complaints}


async def gate(seconds: float = GATE_S, connections: int = CONNECTIONS) -> Gate:
    """Compare short spells; the plain one is measured before and after the other."""
    spells = [
        await _spell(variant, seconds, connections, GATE_WARM_UP_S)
        for variant in (PLAIN, ONE, PLAIN)
    ]
    pair = Pair((spells[0], spells[2]), spells[1])
    cpu = mean(spell.cpu_us for spell in pair.plain)
    return Gate(round(pair.speed, 2), round(pair.changed.cpu_us / cpu, 2), spells[2].batches)
