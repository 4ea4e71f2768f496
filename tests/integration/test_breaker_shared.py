"""Two replicas, one gateway, one database: what one finds out, both know."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from heart_parts import make_schema, until
from ironcart.toolkit.breakers import SharedBreaker
from ironcart.toolkit.database import Database
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.resilience import Breaker

OPEN_S = 0.2


@dataclass
class Replica:
    breaker: Breaker
    shared: SharedBreaker

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(Unavailable), self.breaker.guard():
                raise Unavailable("down")

    async def may_call(self) -> bool:
        await self.shared.exchange()
        return self.breaker.wait_s() == 0


@pytest.fixture
async def replicas(database_url: str) -> AsyncIterator[tuple[Replica, Replica]]:
    await make_schema(database_url, "beta")
    database = Database(database_url, "beta", "test")

    def one() -> Replica:
        breaker = Breaker("gateway", failures_max=2, open_s=OPEN_S)
        return Replica(breaker, SharedBreaker(breaker, database))

    yield one(), one()
    await database.close()


async def test_what_opens_one_opens_the_other_and_one_probes_for_both(
    replicas: tuple[Replica, Replica],
) -> None:
    first, second = replicas
    first.fail(3)
    await first.shared.exchange()
    await second.shared.exchange()
    assert second.breaker.state == "open"

    await until(first.may_call)
    assert not await second.may_call(), "two replicas would probe at once"
    with first.breaker.guard():
        pass
    await first.shared.exchange()
    assert await second.may_call()
    assert second.breaker.state == "closed"


async def test_a_probe_that_fails_keeps_both_open(replicas: tuple[Replica, Replica]) -> None:
    first, second = replicas
    first.fail(3)
    await first.shared.exchange()
    await until(second.may_call)
    second.fail()
    await second.shared.exchange()
    assert not await first.may_call()
    assert first.breaker.state == "open"


async def test_one_that_starts_later_leaves_the_gateway_in_peace_too(
    replicas: tuple[Replica, Replica],
) -> None:
    first, late = replicas
    first.fail(3)
    first.breaker.opened_elsewhere(30)
    await first.shared.exchange()
    assert late.breaker.wait_s() == 0
    assert not await late.may_call()
    assert late.breaker.wait_s() > 20
