"""The status line: rates from counters, and states of services that may not answer."""

from pathlib import Path

from ironcart.embedded.ports import SERVICES, free_port
from ironcart.embedded.process import Child
from ironcart.embedded.status import Rate, StatusLine, counter
from ironcart.embedded.supervisor import Part, State

PAGE = """\
# TYPE ironcart_orders_accepted_total counter
ironcart_orders_accepted_total 12.0
# TYPE ironcart_orders_finished_total counter
ironcart_orders_finished_total{status="confirmed"} 7.0
ironcart_orders_finished_total{status="rejected"} 2.0
ironcart_orders_finished_created{status="confirmed"} 1.7e9
"""


def test_counters_are_read_by_name_and_label() -> None:
    assert counter(PAGE, "ironcart_orders_accepted_total") == 12
    assert counter(PAGE, "ironcart_orders_finished_total") == 9
    assert counter(PAGE, "ironcart_orders_finished_total", 'status="confirmed"') == 7
    assert counter(PAGE, "ironcart_orders") == 0


def test_a_rate_survives_a_counter_that_starts_over() -> None:
    rate = Rate()

    rates = [rate.of(value, now) for value, now in ((5, 0), (25, 1), (25, 2), (8, 4))]

    assert rates == [0, 20, 0, 4]


async def test_what_does_not_answer_is_shown_as_down(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    child = Child(name="x", argv=(), log=tmp_path / "log", ready=lambda: True)
    parts = {name: Part(child, state=State.UP) for name in SERVICES}
    parts["audit"].state = State.RESTARTING

    async with StatusLine(
        urls=dict.fromkeys(SERVICES, nobody),
        parts=parts,
        database_url=f"postgresql://ironcart:x@127.0.0.1:{free_port()}/ironcart",
    ) as status:
        line = await status.read()

    assert line == (
        "accepted ?/s  confirmed ?/s  in flight ? | orders down  inventory down  "
        "payments down  notifications down  audit restarting"
    )
