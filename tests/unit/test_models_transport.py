"""Commit, publish, sweep, deliver, commit, ack, over every interleaving of crashes and losses."""

import pytest

from models.explorer import explore
from models.transport import VARIANTS, Transport, small, variant

BROKEN = {
    "no inbox": "a fact took effect twice",
    "ack before commit": "a committed fact never took effect",
    "publish before commit": "an effect of what was never committed",
    "no sweeper": "a committed fact never took effect",
}


@pytest.mark.parametrize("transport", [*small()], ids=lambda transport: transport.name)
def test_every_committed_fact_takes_effect_once_whatever_is_lost(transport: Transport) -> None:
    report = explore(transport)

    assert report.complete
    assert not report.broken, str(report)
    assert any("messages" in end for end in report.ends)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_rule_that_is_left_out_is_missed(name: str) -> None:
    assert BROKEN[name] in explore(variant(name), first_only=True).broken
