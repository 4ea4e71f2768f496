"""Turns of the reconciler: one that is cut short goes on where it was, and is kept meanwhile."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from payments_parts import Till, fresh_database, new_order, reserved, till
from sandbox_parts import running_sandbox

from ironcart.embedded.postgres import Postgres
from ironcart.embedded.sandbox.server import SandboxServer
from ironcart.services.payments.gateway import Seen, client
from ironcart.services.payments.handlers.reconcile import TURN_S_MAX, reconcile
from ironcart.services.payments.store import ReconcilerStore, Turn
from ironcart.toolkit.outcomes import Unavailable

HOUR_S = 3_600.0
BRIEFLY_S = 1.0


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxServer]:
    with running_sandbox(Path(tmp_path_factory.mktemp("sandbox"))) as server:
        yield server


@pytest.fixture(scope="module")
def payments_url(postgres: Postgres, postgres_url: str) -> str:
    return fresh_database(postgres, postgres_url, "payments_turns")


async def claimed(payments: Till, hold_s: float) -> Turn:
    async with payments.database.acquire() as connection:
        turn = await ReconcilerStore(connection).claim(HOUR_S, hold_s)
    assert turn is not None
    return turn


async def test_a_turn_that_is_cut_short_is_kept_page_by_page_and_goes_on_where_it_was(
    payments_url: str, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE_ITEMS", 1)
    async with till(payments_url, sandbox) as payments:
        for _ in range(4):
            order_id = new_order()
            await payments.deliver(reserved(order_id))
            await payments.ended(order_id)
        pages: list[str] = []
        intents = payments.gateway.intents

        async def noted(created_from: int = 0, after: str = "") -> AsyncIterator[list[Seen]]:
            async for page in intents(created_from, after):
                pages.extend(seen.intent_id for seen in page)
                yield page

        async def cut_short() -> None:
            if len(pages) == 2:
                raise Unavailable("shutting down")

        async def at_once() -> None:
            """Nobody waits."""

        monkeypatch.setattr(payments.gateway, "intents", noted)
        first = await claimed(payments, BRIEFLY_S)
        with pytest.raises(Unavailable):
            await reconcile(payments.gateway, payments.books, first, cut_short)
        row = await payments.database.fetchrow(
            "SELECT extract(epoch FROM claimed_until - now()) AS kept_s FROM reconciler"
        )
        assert row is not None
        assert row["kept_s"] > TURN_S_MAX / 2
        await payments.database.execute("UPDATE reconciler SET claimed_until = now()")
        again = await claimed(payments, BRIEFLY_S)
        done = await reconcile(payments.gateway, payments.books, again, at_once)
        async with payments.database.acquire() as connection:
            await ReconcilerStore(connection).finish(done.watermark, done.batch_no)
        await payments.database.execute("UPDATE reconciler SET finished_at = NULL")
        after = await claimed(payments, BRIEFLY_S)

    assert len(pages) == len(set(pages)) == 4
    assert again.open_from == first.now == done.watermark == after.watermark
    assert after.after == ""
    assert after.open_from is None
    assert payments.found == []
