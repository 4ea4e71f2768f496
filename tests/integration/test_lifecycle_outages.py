"""A service outlives its broker and its database, and says what is missing meanwhile."""

import asyncio
from pathlib import Path

from heart_parts import Topology, bench, make_schema, until
from heart_processes import environment, process
from ironcart.embedded.nats_server import NatsServer
from ironcart.embedded.postgres import Postgres
from ironcart.toolkit.broker import Broker


async def test_without_a_broker_one_goes_on_accepting_the_other_waits_and_both_come_back(
    own_broker: NatsServer, database_url: str, tmp_path: Path
) -> None:
    async with bench(own_broker.url, database_url) as parts:
        await make_schema(database_url, "alpha")
        topology = parts.topology
        environ = environment(own_broker, database_url)
        async with (
            process("alpha", topology, environ, tmp_path) as alpha,
            process("beta", topology, environment(own_broker, database_url), tmp_path) as beta,
        ):
            await asyncio.gather(alpha.until_ready(jetstream="ok"), beta.until_ready())

            async def connected() -> bool:
                return parts.broker.connected

            own_broker.kill()
            await beta.until_ready(503, jetstream="down", database="ok")
            await alpha.until_ready(200, jetstream="down")
            for n in range(1, 11):
                assert await alpha.post(name="a", n=n) == 202

            own_broker.start()
            await asyncio.gather(alpha.until_ready(jetstream="ok"), beta.until_ready())
            await until(connected)  # Nor need we be the first to be back.
            pongs = await parts.ponged(10)
            assert [each.event["version"] for each in pongs] == list(range(1, 11))
            assert alpha.process.poll() is None
            assert beta.process.poll() is None


async def test_without_a_database_nobody_is_ready_and_all_come_back(
    broker: NatsServer, own_postgres: Postgres, tmp_path: Path
) -> None:
    async with bench(broker.url, own_postgres.url) as parts:
        environ = environment(broker, own_postgres.url)
        await make_schema(own_postgres.url, "alpha")
        async with process("alpha", parts.topology, environ, tmp_path) as alpha:
            await alpha.until_ready()
            await asyncio.to_thread(own_postgres.kill)
            await alpha.until_ready(503, database="down", jetstream="ok")
            assert await alpha.post(name="a", n=1) == 503
            own_postgres.start()
            await alpha.until_ready(database="ok")
            assert await alpha.post(name="a", n=1) == 202
            assert alpha.process.poll() is None


async def test_a_service_is_not_ready_until_everything_is_provisioned(
    broker: NatsServer, database_url: str, tmp_path: Path
) -> None:
    topology, client = Topology(), Broker(broker.url, "test")
    await client.connect()
    try:
        environ = environment(broker, database_url)
        async with process("beta", topology, environ, tmp_path) as beta:
            await beta.until_ready(503, start="waiting for the database")
            line = await beta.until_said("Waiting for the database")
            assert "run `ironcart provision`" in line["error"]

            await make_schema(database_url, "beta")
            await beta.until_ready(503, start="waiting for consumers as provisioned")
            line = await beta.until_said("Waiting for consumers as provisioned")
            assert line["level"] == "warning"
            assert line["error"].endswith("is missing: run `ironcart provision`")

            await topology.provision(client)
            await beta.until_ready()
            assert beta.said("Started")
    finally:
        await client.close()
