"""Rows of the network: what is disturbed is counted, and nothing of it is left afterwards."""

import random
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chaos.proxy import Link
from chaos.row import Arena, Felt, Row
from chaos.rows.network import NETWORK_ROWS
from chaos.system import SERVICES

PEERS = ("broker", "postgres", "gateway")


class Traffic:
    """Links that something passes through, if anything does, whenever somebody looks."""

    def __init__(self, passing: Callable[[Link], None]) -> None:
        self.links = {
            f"{service}-{peer}": Link(f"{service}-{peer}", lambda: ("", 0), seed=1)
            for service in SERVICES
            for peer in PEERS
        }
        self._passing = passing

    def arena(self) -> Arena:
        outside = SimpleNamespace(until=self._until, answers=self._answers)
        found = SimpleNamespace(
            system=SimpleNamespace(links=self.links), outside=outside, draw=random.Random(1)
        )
        return cast("Arena", found)

    async def _until(self, check: Callable[[], Awaitable[bool]], _within_s: float) -> bool:
        for link in self.links.values():
            self._passing(link)
        return await check()

    async def _answers(self, _service: str, _path: str) -> str:
        return "200"


def struck(link: Link) -> None:
    """Ten bytes pass, and feel whatever is wrong with the link."""
    link.counts.bytes_delayed += 10 * (link.delay_s > 0)
    link.counts.resets += link.reset_rate > 0
    link.counts.bytes_held += 10 * (not link._open.is_set())
    link.counts.answers_cut += link.takes_commit(b"COMMIT")


def is_whole(link: Link) -> bool:
    return not (
        link.delay_s or link.reset_rate or link.takes_commit(b"COMMIT") or not link._open.is_set()
    )


async def acted(row: Row, traffic: Traffic) -> Felt:
    felt, at_once = Felt(), cast("Any", row.act)
    shorter = {} if row is NETWORK_ROWS[-1] else {"lasts_s": 0}
    await at_once(traffic.arena(), felt, **shorter)
    return felt


@pytest.mark.parametrize("row", NETWORK_ROWS, ids=lambda row: row.name)
async def test_what_is_disturbed_is_counted_and_whole_again_afterwards(row: Row) -> None:
    traffic = Traffic(struck)

    felt = await acted(row, traffic)

    assert felt.bit, felt.missed
    assert 0 < felt.injected_at <= felt.healed_at
    assert all(is_whole(link) for link in traffic.links.values())
    ones = [link for link in traffic.links.values() if any_counted(link)]
    assert len(ones) == (1 if "one service" in row.name else len(SERVICES))


def any_counted(link: Link) -> bool:
    counts = link.counts
    return bool(counts.bytes_delayed or counts.resets or counts.bytes_held or counts.answers_cut)


@pytest.mark.parametrize("row", NETWORK_ROWS, ids=lambda row: row.name)
async def test_a_disturbance_that_nothing_passed_through_is_no_proof(row: Row) -> None:
    traffic = Traffic(lambda _: None)

    felt = await acted(row, traffic)

    assert not felt.bit
    assert all(is_whole(link) for link in traffic.links.values())
