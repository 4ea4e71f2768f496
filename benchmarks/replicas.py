"""More of everything: replicas of each service on the same durable consumers, nodes of the broker.

On one machine more processes bring no more throughput. What can be measured here is what they add
to the cost of an order, and that work is neither done twice nor lost.
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.bed import CLI, SERVICES, Bed, CannotMeasure
from benchmarks.endtoend import CONNECTIONS, Spell, closed, warm_up
from benchmarks.outage import counted
from chaos.outside import delivered_again

# Replicas of each service, nodes of the broker. Ten of each did not come up: each process takes up
# to ten connections, and the embedded database has a hundred.
SHAPES = ((1, 1), (2, 1), (1, 3))
# Small batches and ten processes a service: give them time to come to their end.
VERIFY_SETTLE_S = 120


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape of the system under the same load."""

    replicas: int
    nats_nodes: int
    spell: Spell
    redelivered: int
    conflicts: float
    verified: bool

    def line(self) -> str:
        """Return it for a person."""
        biggest = max(self.spell.batches.values(), default=0.0)
        return (
            f"  {self.replicas} of each service, {self.nats_nodes} broker node(s):"
            f" {self.spell.per_minute:,.0f} a minute, {self.spell.cpu_us:,.0f} us an order,"
            f" largest batch on average {biggest:,.0f}, {self.redelivered:,} delivered again,"
            f" {self.conflicts:,.0f} met twice,"
            f" verify {'ok' if self.verified else 'NOT OK'}"
        )


@dataclass(frozen=True, slots=True)
class Shapes:
    """All shapes; the first is what the others are compared with."""

    measured: Sequence[Shape]
    failed: Sequence[str] = ()

    @property
    def complaints(self) -> list[str]:
        """What more replicas must not do."""
        ill = [f"verify finds faults: {each.line()}" for each in self.measured if not each.verified]
        return [*ill, *self.failed]

    def lines(self) -> list[str]:
        """Return it for a person."""
        plain = self.measured[0].spell.cpu_us_an_order
        found = []
        for each in self.measured:
            now = each.spell.cpu_us_an_order
            rows = ", ".join(f"{name} {now[name] / plain[name]:.2f}" for name in plain)
            found += [each.line(), f"    CPU an order, times the first: {rows}"]
        return found + [f"  BROKEN: {why}" for why in self.failed]

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine."""
        return {
            "complaints": self.complaints,
            "shapes": [
                {
                    **{name: getattr(each, name) for name in each.__slots__ if name != "spell"},
                    "spell": each.spell.as_json(),
                }
                for each in self.measured
            ],
        }


async def measure(seconds: float, connections: int = CONNECTIONS) -> Shapes:
    """Measure each shape on a system of its own; one that does not come up is told at the end."""
    found, failed = list[Shape](), list[str]()
    for replicas, nats_nodes in SHAPES:
        try:
            found.append(await _shape(replicas, nats_nodes, seconds, connections))
        except (CannotMeasure, TimeoutError) as error:
            said = str(error) or "it is not ready in time"
            failed.append(f"{replicas} of each service, {nats_nodes} broker node(s): {said}")
            if not found:  # There is nothing to compare the others with.
                raise
    return Shapes(found, failed)


async def _shape(replicas: int, nats_nodes: int, seconds: float, connections: int) -> Shape:
    async with Bed(replicas=replicas, nats_nodes=nats_nodes) as bed:
        await warm_up(bed)
        spell = await closed(bed, seconds, connections)
        if not spell.accepted:
            raise CannotMeasure(f"{replicas} replicas: no order was accepted: {spell.statuses}")
        redelivered = await delivered_again(bed.run["nats"]["urls"])
        said = await asyncio.gather(*(bed.metrics(service) for service in SERVICES))
        conflicts = sum(counted(_only_duplicates(text), "ironcart_outcomes_total") for text in said)
        return Shape(replicas, nats_nodes, spell, redelivered, conflicts, await _verified(bed))


def _only_duplicates(metrics: str) -> str:
    return "\n".join(line for line in metrics.splitlines() if 'outcome="duplicate"' in line)


async def _verified(bed: Bed) -> bool:
    process = await asyncio.create_subprocess_exec(
        *(*CLI, "verify", "--data", str(bed.folder), "--settle", str(VERIFY_SETTLE_S)),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    if process.returncode:
        sys.stderr.write(said.decode())
    return process.returncode == 0
