"""The network between services and their broker, database and gateway: late, cut, held, torn."""

import asyncio
from collections.abc import Callable
from functools import partial

from chaos.proxy import Counts, Link
from chaos.row import Arena, Felt, Row
from chaos.rows.gateway import STRUCK_WITHIN_S
from chaos.rows.signals import ready
from chaos.system import SERVICES

LASTS_S = 6.0
PARTITION_S = 8.0
ONE_WAY_DELAY_S = 0.1
RESET_RATE = 0.05
COMMITS_CUT = 3
CUT_WITHIN_S = 15.0


def links_to(arena: Arena, peer: str) -> list[Link]:
    """Return every link to `broker`, `postgres` or `gateway`."""
    return [link for name, link in arena.system.links.items() if name.endswith(f"-{peer}")]


def drawn_link(arena: Arena, peer: str) -> list[Link]:
    """Return the link of one service, drawn."""
    return [arena.system.links[f"{arena.draw.choice(SERVICES)}-{peer}"]]


async def disturb(
    arena: Arena,
    felt: Felt,
    *,
    links: Callable[[Arena], list[Link]],
    disturb: Callable[[Link], None],
    count: Callable[[Counts], int],
    what: str,
    lasts_s: float = LASTS_S,
) -> None:
    """Disturb links for a while; what they counted is the proof."""
    chosen = links(arena)
    before = [link.counts.copy() for link in chosen]
    felt.inject()
    for link in chosen:
        disturb(link)

    def counted() -> int:
        pairs = zip(chosen, before, strict=True)
        return sum(count(link.counts.since(was)) for link, was in pairs)

    async def felt_something() -> bool:
        return counted() > 0

    try:
        await asyncio.sleep(lasts_s)
        await arena.outside.until(felt_something, STRUCK_WITHIN_S)
    finally:
        for link in chosen:
            link.heal()
        felt.heal()
    names = chosen[0].name if len(chosen) == 1 else f"{len(chosen)} links"
    felt.saw(f"{counted():,} {what} on {names}", proof=counted() > 0)
    felt.saw("every service is ready", proof=await ready(arena, *SERVICES))


async def lose_commit_answers(arena: Arena, felt: Felt) -> None:
    """Let COMMITs reach the database, and lose what it says to them: unknown commits."""
    links = links_to(arena, "postgres")
    before = sum(link.counts.answers_cut for link in links)

    def cut() -> int:
        return sum(link.counts.answers_cut for link in links) - before

    async def every_service() -> bool:
        return cut() >= len(links)

    felt.inject()
    for link in links:
        link.cut_answers(COMMITS_CUT)
    try:
        await arena.outside.until(every_service, CUT_WITHIN_S)
    finally:
        for link in links:
            link.heal()
        felt.heal()
    felt.saw(f"{cut()} commits done whose answers were lost", proof=cut() > 0)


def _delay(link: Link) -> None:
    link.delay_s = ONE_WAY_DELAY_S


def _reset(link: Link) -> None:
    link.reset_rate = RESET_RATE


def _latency(peer: str) -> Row:
    act = partial(
        disturb,
        links=lambda arena: links_to(arena, peer),
        disturb=_delay,
        count=lambda counts: counts.bytes_delayed,
        what="bytes delayed",
    )
    return Row(f"200 ms more round trip to the {peer}", act)


def _resets(peer: str) -> Row:
    act = partial(
        disturb,
        links=lambda arena: links_to(arena, peer),
        disturb=_reset,
        count=lambda counts: counts.resets,
        what="connections reset",
    )
    return Row(f"connections to the {peer} reset (5 % of packets)", act)


def _partition(peer: str) -> Row:
    act = partial(
        disturb,
        links=lambda arena: drawn_link(arena, peer),
        disturb=Link.hold,
        count=lambda counts: counts.bytes_held,
        what="bytes held",
        lasts_s=PARTITION_S,
    )
    return Row(f"one service cut off from the {peer} 8 s", act)


NETWORK_ROWS = (
    *(_latency(peer) for peer in ("broker", "postgres", "gateway")),
    *(_resets(peer) for peer in ("broker", "postgres", "gateway")),
    *(_partition(peer) for peer in ("broker", "postgres")),
    Row("answers to COMMIT lost", lose_commit_answers),
)
