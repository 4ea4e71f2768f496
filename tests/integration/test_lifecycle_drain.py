"""The end of a service: it finishes what it has in hand, or says that it could not."""

import time
from pathlib import Path

from heart_parts import bench, until
from heart_processes import environment, process
from ironcart.embedded.nats_server import NatsServer


async def test_a_service_that_drains_says_so_finishes_and_has_nothing_delivered_again(
    broker: NatsServer, database_url: str, tmp_path: Path
) -> None:
    async with bench(broker.url, database_url) as parts:
        environ = environment(broker, database_url)
        async with process("beta", parts.topology, environ, tmp_path) as beta:
            await beta.until_ready()
            pings = [parts.topology.ping(f"a-{n}") for n in range(200)]
            await parts.send(*pings, parts.topology.ping("last", action="slow"))
            await parts.ponged(1)
            beta.terminate()
            await beta.until_ready(503, drain="draining")
            assert await beta.ended() == 0
            (line,) = beta.said("Drain completed")
            assert line["level"] == "info"
            assert line["service"] == "beta"
            assert not beta.said("Force shutdown")

        info = await parts.consumer_info()
        assert info["num_redelivered"] == info["num_ack_pending"] == 0
        answered = await parts.pongs()
        assert len(answered) == 201 - info["num_pending"]
        # Nothing is left to the next one's sweeper either.
        assert dict(await parts.marked()) == {each.event["id"]: each.seq for each in answered}


async def test_a_handler_that_never_ends_is_forced(
    broker: NatsServer, database_url: str, tmp_path: Path
) -> None:
    async with bench(broker.url, database_url) as parts:
        environ = environment(broker, database_url, DRAIN_TIMEOUT_S="1")
        async with process("beta", parts.topology, environ, tmp_path) as beta:
            await beta.until_ready()
            await parts.send(parts.topology.ping("a", action="hang"))

            async def in_hand() -> bool:
                return bool((await parts.consumer_info())["num_ack_pending"])

            await until(in_hand)
            beta.terminate()
            asked = time.monotonic()
            assert await beta.ended() == 1
            assert time.monotonic() - asked < 10
            (line,) = beta.said("Force shutdown")
            assert line["level"] == "warning"
            assert not beta.said("Drain completed")
        assert (await parts.consumer_info())["num_ack_pending"] == 1


async def test_a_service_that_never_became_ready_still_drains(
    own_broker: NatsServer, database_url: str, tmp_path: Path
) -> None:
    async with bench(own_broker.url, database_url) as parts:
        own_broker.terminate()
        environ = environment(own_broker, database_url)
        async with process("beta", parts.topology, environ, tmp_path) as beta:
            await beta.until_ready(503, start="waiting for the broker", database="ok")
            beta.terminate()
            assert await beta.ended() == 0
            assert beta.said("Drain completed")
