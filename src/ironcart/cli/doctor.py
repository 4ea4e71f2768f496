"""`ironcart doctor`: unsafe settings, lag, what is stuck and why, said plainly."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import typer

from ironcart.cli import address, services, stuck
from ironcart.cli.deadletters import connected, count_open
from ironcart.cli.floors import before, floors
from ironcart.events import OWNERS, STREAMS
from ironcart.toolkit.broker import Broker, BrokerError
from ironcart.toolkit.broker.reader import extent
from ironcart.toolkit.database import Database
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.tls import Tls
from ironcart.toolkit.topology import Durable, Stream, difference

MONITOR_TIMEOUT_S = 3.0
FILL_RATIO_WARN = 0.7
LAG_MESSAGES_WARN = 10_000
OUTBOX_AGE_S_WARN = 60
# cert-manager renews when a third is left, so this late something is wrong.
CERTIFICATE_WARN = timedelta(days=14)
UNSIGNED_S_WARN = 60


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `verdict` is ok, warning or UNSAFE."""

    verdict: str
    text: str


def doctor(data: address.Data = address.DATA_DEFAULT) -> None:
    """Check what could lose orders, what is behind and what is stuck, and say why.

    Exit 1 when a setting could lose orders.
    """
    findings = asyncio.run(_examine(address.find(data)))
    for finding in findings:
        print(f"{finding.verdict:>8}  {finding.text}")
    if any(finding.verdict == "UNSAFE" for finding in findings):
        raise typer.Exit(1)


async def _examine(where: address.Addresses) -> list[Finding]:
    monitors = where.nats_monitor_url.split(",")
    findings = [finding for each in monitors async for finding in _node(each)]
    findings += _certificates(where)
    async with connected(where) as broker:
        known = await _known(where.databases)
        for stream in STREAMS:
            findings += [finding async for finding in _stream(broker, stream, known)]
            findings += await _unfilled(broker, stream, where.databases)
        findings += await _dead_letters(broker, where.databases)
        for service in services.every().values():
            for durable in service.durables:
                findings.append(await _durable(broker, durable))
    for name in services.NAMES:
        findings += [finding async for finding in _database(name, where.databases[name])]
    findings.append(await _signed(where.databases["audit"]))
    return findings + [finding async for finding in _orders(where.databases)]


async def _known(databases: Mapping[str, str]) -> Mapping[str, int]:
    try:
        return await floors(databases)
    except Unavailable:
        return {}


async def _database(service: str, url: str) -> AsyncIterator[Finding]:
    """What a service's own tables tell: outbox, breakers, a recovery that goes on."""
    database = Database(url, service, "doctor")
    try:
        row = await database.fetchrow(_OUTBOX)
        breakers = await database.fetch("SELECT name FROM breakers WHERE open_until IS NOT NULL")
        recovering = await database.fetchrow("SELECT 1 FROM recoveries WHERE ended_at IS NULL")
    except Unavailable as error:
        yield Finding("warning", f"{service}: {error}")
        return
    finally:
        await database.close()
    assert row is not None
    late = row["age_s"] > OUTBOX_AGE_S_WARN
    if row["waiting"]:
        text = f"{service}: {row['waiting']} commits to publish, the oldest {row['age_s']} s old"
        yield Finding("warning" if late else "ok", text)
    for breaker in breakers:
        yield Finding("warning", f"{service}: breaker {breaker['name']} is open; its jobs wait")
    if recovering is not None:
        yield Finding("warning", f"{service}: its database was restored, and is catching up")


async def _signed(url: str) -> Finding:
    """Whether the audit trail is under signed checkpoints."""
    database = Database(url, "audit", "doctor")
    try:
        row = await database.fetchrow(_SIGNED, [stream.name for stream in STREAMS])
    except Unavailable as error:
        return Finding("warning", f"audit: {error}")
    finally:
        await database.close()
    assert row is not None
    if row["number"] is None:
        text = "the audit trail is not signed, so whoever rules the database can rewrite it: set"
        if row["unsigned_s"] <= UNSIGNED_S_WARN:
            text = "the audit trail is not signed yet; if it stays so, set"
        return Finding("warning", f"{text} IRONCART_AUDIT_SIGNING_KEY_FILE")
    text = f"the audit trail is signed to checkpoint {row['number']}"
    if row["unlinked"] is not None:
        lost = f"{row['unlinked']} has lost the link that it names"
        return Finding("warning", f"{text}, and no further: {lost}; ask `ironcart audit verify`")
    if row["unsigned_s"] > UNSIGNED_S_WARN:
        return Finding("warning", f"{text}; the end of it has waited for {row['unsigned_s']} s")
    return Finding("ok", text)


async def _orders(databases: Mapping[str, str]) -> AsyncIterator[Finding]:
    try:
        found = await stuck.find(databases)
    except Unavailable as error:
        yield Finding("warning", f"orders that are stuck cannot be told: {error}")
        return
    if not found.count:
        yield Finding("ok", f"no order has waited for more than {stuck.STUCK_AFTER_S} s")
        return
    waiting = f"{found.count} orders have waited for more than {stuck.STUCK_AFTER_S} s; the oldest:"
    yield Finding("warning", waiting)
    for place in found.oldest:
        text = f"{place.order_id} {place.status} for {place.age_s} s: {stuck.why(place)}"
        yield Finding("warning", text)


def _certificates(where: address.Addresses) -> Iterator[Finding]:
    """How long the certificates last that we use ourselves, if any."""
    if where.tls_dir:
        # A date, which only the wall clock knows.
        ends = Tls(Path(where.tls_dir)).expires_at
        left = ends - datetime.now(UTC)  # nosemgrep: no-duration-by-the-wall-clock
        verdict = "warning" if left < CERTIFICATE_WARN else "ok"
        yield Finding(verdict, f"the certificate in {where.tls_dir} ends in {left.days} days")


async def _node(monitor_url: str) -> AsyncIterator[Finding]:
    """What a node of the broker tells: whether it syncs, and whether it asks who comes."""
    if not monitor_url:
        missing = "set IRONCART_NATS_MONITOR_URL to see whether the broker syncs"
        yield Finding("warning", missing)
        return
    try:
        timeout = aiohttp.ClientTimeout(total=MONITOR_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{monitor_url}/varz") as answer,
        ):
            said: dict[str, Any] = await answer.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        yield Finding("warning", f"cannot ask {monitor_url}/varz: {error}")
        return
    config = said.get("jetstream", {}).get("config", {})
    broker = f"broker {said.get('server_name', '')} {said.get('version', 'unknown')}"
    if config.get("sync_always") is True:
        yield Finding("ok", f"{broker} syncs every write before it acknowledges")
    else:
        yield Finding(
            "UNSAFE",
            f"{broker} acknowledges before it syncs: a power cut loses orders;"
            " set jetstream { sync_interval: always }",
        )
    if not said.get("auth_required"):
        users = "give it the users that `ironcart permissions` prints"
        yield Finding("warning", f"{broker} asks nobody for a password: {users}")


async def _stream(
    broker: Broker, stream: Stream, known: Mapping[str, int]
) -> AsyncIterator[Finding]:
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
    if state["last_seq"] < known.get(stream.name, 0):
        ended = f"{text}; it ends at {state['last_seq']} of {known[stream.name]} published"
        yield Finding("UNSAFE", f"{ended}: run `ironcart republish`")
    elif drift:
        yield Finding("UNSAFE", f"{text}; {'; '.join(drift)}: run `ironcart provision`")
    elif filled >= FILL_RATIO_WARN:
        yield Finding("warning", f"{text}: give it more max_bytes before it refuses events")
    elif replicas == 1:
        yield Finding("ok", f"{text} (one copy: survives power loss, not the loss of its disk)")
    else:
        yield Finding("ok", text)


async def _dead_letters(broker: Broker, databases: Mapping[str, str]) -> list[Finding]:
    """How many wait for a person; their stream also has what persons did."""
    try:
        count = await count_open(broker, databases)
    except (BrokerError, Unavailable) as error:
        return [Finding("warning", f"dead letters cannot be told: {error}")]
    if not count:
        return []
    return [Finding("warning", f"{count} dead letters: see `ironcart deadletters list`")]


async def _unfilled(broker: Broker, stream: Stream, databases: Mapping[str, str]) -> list[Finding]:
    """Whether a stream that was made again still lacks what was published before."""
    try:
        held = await extent(broker, stream.name)
        if stream.owner not in OWNERS or held.first_seq == 1:
            return []
        missing = await before(databases[stream.owner], stream.owner, held.first_seq)
    except (BrokerError, Unavailable) as error:
        return [Finding("warning", f"what stream {stream.name} lacks cannot be told: {error}")]
    if not missing:
        return []
    text = f"stream {stream.name} was made again and lacks {missing} events"
    return [Finding("UNSAFE", f"{text}: run `ironcart republish`")]


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


# Without a checkpoint, what waits to be signed begins with the first link.
_SIGNED = """
SELECT c.number, coalesce(extract(epoch FROM now() - min(l.linked_at)), 0)::int AS unsigned_s,
       min(h.stream) FILTER (WHERE signed.stream IS NULL) AS unlinked
FROM (SELECT) AS always
LEFT JOIN (SELECT number, line FROM checkpoints ORDER BY number DESC LIMIT 1) AS c ON true
CROSS JOIN unnest($1::text[]) AS s(stream)
LEFT JOIN LATERAL json_to_recordset(c.line::json -> 'heads') AS h(stream text, stream_seq bigint)
  ON h.stream = s.stream
LEFT JOIN links signed ON signed.stream = h.stream AND signed.stream_seq = h.stream_seq
LEFT JOIN links l ON l.stream = s.stream AND l.stream_seq = coalesce(h.stream_seq, 0) + 1
GROUP BY c.number
"""
_OUTBOX = """
SELECT count(*) AS waiting,
       coalesce(extract(epoch FROM now() - min(recorded_at)), 0)::int AS age_s
FROM batches WHERE first_seq IS NULL
"""
