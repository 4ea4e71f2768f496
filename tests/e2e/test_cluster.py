"""Three broker nodes: the one that leads ORDERS is killed under load, and nothing is lost."""

import asyncio
import os
import signal
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from ironcart.events import STREAMS
from ironcart.toolkit.broker import Broker
from shopping import System, running_system, until

NODES = 3
BACK_WITHIN_S = 90.0
# A busy machine takes ten times the half minute of a quiet one.
LIMIT_S = 480.0


@pytest.fixture
def clustered() -> Iterator[System]:
    """A system of this test's own, with three broker nodes."""
    with running_system("cluster", "--nats-nodes", str(NODES)) as found:
        yield found


@pytest.mark.timeout(LIMIT_S)
async def test_the_leader_of_orders_may_be_killed_under_load(clustered: System) -> None:
    nats = clustered.run["nats"]
    assert [len(nats[key]) for key in ("urls", "pids", "stores", "monitor_urls")] == [NODES] * 4
    assert all(_syncs(url) for url in nats["monitor_urls"])
    infos = await _described(nats["urls"])
    assert all(info["config"]["num_replicas"] == NODES for info in infos.values())
    assert all(len(info["cluster"]["replicas"]) == NODES - 1 for info in infos.values())
    load = await asyncio.create_subprocess_exec(
        *clustered.command("load", "--rate", "30", "--duration", "10", "--quiet", "--json"),
        stdout=asyncio.subprocess.PIPE,
    )
    await until(lambda: _growing(nats, infos["ORDERS"]["state"]["messages"]))

    leader = int(infos["ORDERS"]["cluster"]["leader"].rpartition("-")[2]) - 1
    os.kill(nats["pids"][leader], signal.SIGKILL)

    said, _ = await load.communicate()
    assert load.returncode == 0, said.decode()
    summary: dict[str, Any] = msgspec.json.decode(said.splitlines()[-1])
    assert summary["accepted"] == summary["terminal"] == 300
    await until(lambda: _back(clustered, leader, nats["pids"][leader]), BACK_WITHIN_S)
    clustered.verify()


async def _described(urls: list[str]) -> dict[str, dict[str, Any]]:
    broker = Broker(",".join(urls), "test")
    await broker.connect()
    try:
        return {each.name: await broker.api(f"STREAM.INFO.{each.name}") for each in STREAMS}
    finally:
        await broker.close()


async def _growing(nats: dict[str, Any], before: int) -> bool:
    info = (await _described(nats["urls"]))["ORDERS"]
    messages: int = info["state"]["messages"]
    return messages > before + 50


async def _back(system: System, node: int, killed: int) -> bool:
    """Another process runs as that node, and has caught up."""
    nats = system.run["nats"]
    if nats["pids"][node] == killed:
        return False
    try:
        _asked(nats["monitor_urls"][node], "healthz")
    except OSError:
        return False
    return True


def _syncs(monitor_url: str) -> bool:
    return _asked(monitor_url, "varz")["jetstream"]["config"].get("sync_always") is True


def _asked(monitor_url: str, page: str) -> Any:
    with urllib.request.urlopen(f"{monitor_url}/{page}", timeout=5) as answer:
        return msgspec.json.decode(answer.read())
