"""The network between services and their broker, database and gateway: late, cut, held, torn."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
PEERS = ("broker", "postgres", "gateway")


def links_to(arena: Arena, peer: str) -> list[Link]:
    """Return every link to `broker`, `postgres` or `gateway`."""
    return [link for name, link in arena.system.links.items() if name.endswith(f"-{peer}")]


def drawn_link(arena: Arena, peer: str) -> list[Link]:
    """Return the link of one service, drawn."""
    return [arena.system.links[f"{arena.draw.choice(SERVICES)}-{peer}"]]


def counting(links: list[Link], count: Callable[[Counts], int]) -> Callable[[], int]:
    """Return what says how much the links have counted from now on."""
    before = [link.counts.copy() for link in links]

    def counted() -> int:
        pairs = zip(links, before, strict=True)
        return sum(count(link.counts.since(was)) for link, was in pairs)

    return counted


@contextmanager
def disturbed(felt: Felt, links: list[Link], how: Callable[[Link], None]) -> Iterator[None]:
    """Disturb links for the length of a `with`."""
    felt.inject()
    for link in links:
        how(link)
    try:
        yield
    finally:
        for link in links:
            link.heal()
        felt.heal()


async def disturb(
    arena: Arena,
    felt: Felt,
    *,
    peer: str,
    how: Callable[[Link], None],
    count: Callable[[Counts], int],
    what: str,
    links: Callable[[Arena, str], list[Link]] = links_to,
    lasts_s: float = LASTS_S,
) -> None:
    """Disturb links to `peer` for a while; what they counted is the proof."""
    chosen = links(arena, peer)
    counted = counting(chosen, count)

    async def felt_something() -> bool:
        return counted() > 0

    with disturbed(felt, chosen, how):
        await asyncio.sleep(lasts_s)
        await arena.outside.until(felt_something, STRUCK_WITHIN_S)
    names = chosen[0].name if len(chosen) == 1 else f"{len(chosen)} links"
    felt.saw(f"{counted():,} {what} on {names}", proof=counted() > 0)
    felt.saw("every service is ready", proof=await ready(arena, *SERVICES))


async def lose_commit_answers(arena: Arena, felt: Felt) -> None:
    """Let COMMITs reach the database, and lose what it says to them: unknown commits."""
    links = links_to(arena, "postgres")
    cut = counting(links, lambda counts: counts.answers_cut)

    async def every_service() -> bool:
        return cut() >= len(links)

    with disturbed(felt, links, lambda link: link.cut_answers(COMMITS_CUT)):
        await arena.outside.until(every_service, CUT_WITHIN_S)
    felt.saw(f"{cut()} commits done whose answers were lost", proof=cut() > 0)


def _delay(link: Link) -> None:
    link.delay_s = ONE_WAY_DELAY_S


def _reset(link: Link) -> None:
    link.reset_rate = RESET_RATE


LATE = partial(disturb, how=_delay, count=lambda so: so.bytes_delayed, what="bytes delayed")
RESET = partial(disturb, how=_reset, count=lambda so: so.resets, what="connections reset")
CUT_OFF = partial(
    disturb,
    links=drawn_link,
    how=Link.hold,
    count=lambda so: so.bytes_held,
    what="bytes held",
    lasts_s=PARTITION_S,
)
NETWORK_ROWS = (
    *(Row(f"200 ms more round trip to the {peer}", partial(LATE, peer=peer)) for peer in PEERS),
    *(
        Row(f"connections to the {peer} reset (5 % of packets)", partial(RESET, peer=peer))
        for peer in PEERS
    ),
    *(
        Row(f"one service cut off from the {peer} 8 s", partial(CUT_OFF, peer=peer))
        for peer in ("broker", "postgres")
    ),
    Row("answers to COMMIT lost", lose_commit_answers),
)
