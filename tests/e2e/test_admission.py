"""Ten times what the system sustains is wanted: it takes what it can, and shuts nobody else out.

The figures: `.venv/bin/pytest tests/e2e/test_admission.py -s`.
"""

import asyncio
import json
import secrets
import sys
from urllib.parse import urlsplit

import asyncpg
import pytest

from crowd import OVERLOAD, Crowd, Flood, Phase, tides
from ironcart.services.orders.handlers.admit import COMMIT_WAIT_S_MAX, Limits
from shopping import System, until

PHASE = Phase(warm_s=0.7, measured_s=2.0)
FLOODS = 5  # At most: two that something else spoilt do not move the median.
# The most that is accepted in calm is accepted from one of these.
CALM_CONNECTIONS = (48, 128, 384)
# More than one caller may have in hand, so that waiting alone does not absorb the flood. A caller
# who is refused is not read for a second: what comes in is less than what is wanted, on purpose.
FLOOD_CONNECTIONS = Limits().of_one_caller + 200
HONEST_CONNECTIONS = 80
HONEST_A_SECOND = 20.0
FLOODER, HONEST = "127.0.0.1", "127.0.0.2"
PATIENCE_S = 5.0
HONEST_PATIENCE_S = COMMIT_WAIT_S_MAX + 1.0
ENDED_WITHIN_S = 180.0
LIMIT_S = 900.0  # A minute and a half on a quiet machine.
# Nothing is stocked, so each ends as rejected.
HOW_MANY = """
SELECT count(*) AS placed, count(*) FILTER (WHERE status = 'rejected') AS ended
FROM orders.orders WHERE customer_id = $1
"""


class Trial:
    """One customer's orders, which cost little to finish."""

    def __init__(self, system: System) -> None:
        site = urlsplit(system.url("orders"))
        self._site = (site.hostname or "", site.port or 0)
        self._database_url: str = system.run["postgres"]["url"]
        self._customer = f"C-{secrets.token_hex(6)}"
        self._accepted = 0

    def crowd(self, address: str, patience_s: float) -> Crowd:
        line = {"sku": f"SKU-{secrets.token_hex(4)}", "quantity": 1, "unit_price": 1}
        body = json.dumps({"customer_id": self._customer, "items": [line]}).encode()
        head = b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        said = b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
        return Crowd(self._site, address, said, patience_s)

    async def left(self, *crowds: Crowd) -> None:
        """Wait until the crowds are gone and every order that was accepted has ended.

        So each phase begins with nothing to be done, and what was accepted was no empty word.
        """
        for crowd in crowds:
            await crowd.leave()
            assert not crowd.odd, crowd.odd[0]
            self._accepted += crowd.all_accepted()
        connection = await asyncpg.connect(self._database_url)

        async def all_ended() -> bool:
            row = await connection.fetchrow(HOW_MANY, self._customer)
            assert row is not None
            return bool(row["ended"] == row["placed"] >= self._accepted)

        try:
            await until(all_ended, ENDED_WITHIN_S)
        finally:
            await connection.close()

    async def calm(self, connections: int) -> float:
        """Orders accepted a second while each caller waits for its answer."""
        crowd = self.crowd(FLOODER, PATIENCE_S)
        await crowd.connect(connections)
        rates = await crowd.closed_loop(PHASE)
        await self.left(crowd)
        return rates.accepted

    async def flood(self, sustained: float) -> Flood:
        """The same with far more wanted, while somebody else wants little."""
        crowd, modest = self.crowd(FLOODER, PATIENCE_S), self.crowd(HONEST, HONEST_PATIENCE_S)
        await modest.connect(HONEST_CONNECTIONS)
        await crowd.connect(FLOOD_CONNECTIONS)
        rates, _ = await asyncio.gather(
            crowd.open_loop(OVERLOAD * sustained, PHASE), modest.open_loop(HONEST_A_SECOND, PHASE)
        )
        await self.left(crowd, modest)
        honest = modest.counts["accepted"] / modest.counts["wanted"]
        dropped = crowd.dropped() + modest.dropped()
        return Flood(rates, crowd.counts["refused"], dropped, honest)


@pytest.mark.timeout(LIMIT_S)
async def test_at_ten_times_the_load_goodput_stays_and_nobody_else_is_shut_out(
    system: System,
) -> None:
    trial = Trial(system)
    rates = {connections: await trial.calm(connections) for connections in CALM_CONNECTIONS}
    # Chosen once, measured anew: a lucky figure of the choice does not count.
    best = max(rates, key=rates.__getitem__)

    found = await tides(lambda: trial.calm(best), trial.flood, FLOODS)

    figures = f"{best} connections {rates}\nkept {found.kept():.2f}, {found}\n"
    sys.stderr.write(figures)
    assert not found.complaints(), figures
