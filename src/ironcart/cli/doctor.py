"""`ironcart doctor`: the broker's safety settings, streams and consumers, said plainly."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import typer

from ironcart.cli import address, services
from ironcart.cli.deadletters import connected
from ironcart.events import STREAMS
from ironcart.toolkit.broker import Broker, BrokerError
from ironcart.toolkit.topology import Durable, Stream, difference

MONITOR_TIMEOUT_S = 3.0
FILL_RATIO_WARN = 0.7
LAG_MESSAGES_WARN = 10_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `verdict` is ok, warning or UNSAFE."""

    verdict: str
    text: str


def doctor(data: address.Data = address.DATA_DEFAULT) -> None:
    """Check the broker's safety settings; exit 1 when one of them could lose orders."""
    findings = asyncio.run(_examine(address.find(data)))
    for finding in findings:
        print(f"{finding.verdict:>8}  {finding.text}")
    if any(finding.verdict == "UNSAFE" for finding in findings):
        raise typer.Exit(1)


async def _examine(where: address.Addresses) -> list[Finding]:
    findings = [await _synced(where.nats_monitor_url)]
    async with connected(where.nats_url) as broker:
        for stream in STREAMS:
            findings += [finding async for finding in _stream(broker, stream)]
        for service in services.every().values():
            for durable in service.durables:
                findings.append(await _durable(broker, durable))
    return findings


async def _synced(monitor_url: str) -> Finding:
    if not monitor_url:
        return Finding("warning", "set IRONCART_NATS_MONITOR_URL to see whether the broker syncs")
    try:
        timeout = aiohttp.ClientTimeout(total=MONITOR_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{monitor_url}/varz") as answer,
        ):
            said: dict[str, Any] = await answer.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return Finding("warning", f"cannot ask {monitor_url}/varz: {error}")
    config = said.get("jetstream", {}).get("config", {})
    version = said.get("version", "unknown")
    if config.get("sync_always") is True:
        return Finding("ok", f"broker {version} syncs every write before it acknowledges")
    return Finding(
        "UNSAFE",
        f"broker {version} acknowledges before it syncs: a power cut loses orders;"
        " set jetstream { sync_interval: always }",
    )


async def _stream(broker: Broker, stream: Stream) -> AsyncIterator[Finding]:
    try:
        info = await broker.api(f"STREAM.INFO.{stream.name}")
    except BrokerError as error:
        yield Finding("UNSAFE", f"stream {stream.name}: {error}: run `ironcart provision`")
        return
    config, state = info["config"], info["state"]
    wanted = stream.config(replicas=config["num_replicas"], bytes_max=config["max_bytes"])
    drift = difference(wanted, config)
    replicas, filled = config["num_replicas"], state["bytes"] / max(1, config["max_bytes"])
    text = f"stream {stream.name}: {state['messages']} messages, {filled:.1%} full, R{replicas}"
    if drift:
        yield Finding("UNSAFE", f"{text}; {'; '.join(drift)}: run `ironcart provision`")
    elif filled >= FILL_RATIO_WARN:
        yield Finding("warning", f"{text}: give it more max_bytes before it refuses events")
    elif replicas == 1:
        yield Finding("ok", f"{text} (one copy: survives power loss, not the loss of its disk)")
    else:
        yield Finding("ok", text)
    if stream.name == "DEADLETTERS" and state["messages"]:
        yield Finding(
            "warning", f"{state['messages']} dead letters: see `ironcart deadletters list`"
        )


async def _durable(broker: Broker, durable: Durable) -> Finding:
    try:
        info = await broker.api(f"CONSUMER.INFO.{durable.stream}.{durable.name}")
    except BrokerError as error:
        where = f"consumer {durable.name} of {durable.stream}"
        return Finding("UNSAFE", f"{where}: {error}: run `ironcart provision`")
    lag = info["num_pending"] + info["num_ack_pending"]
    text = f"consumer {durable.name} of {durable.stream}: {lag} behind"
    if drift := difference(durable.config(), info["config"]):
        return Finding("UNSAFE", f"{text}; {'; '.join(drift)}: run `ironcart provision`")
    return Finding("warning" if lag > LAG_MESSAGES_WARN else "ok", text)
