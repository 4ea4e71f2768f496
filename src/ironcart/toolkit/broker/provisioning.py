"""Make streams and durable consumers as declared, compare what is there with it, start one over."""

from collections.abc import Mapping, Sequence
from typing import Any

from ironcart.toolkit.broker.connection import Broker, BrokerError
from ironcart.toolkit.outcomes import Refused, Unavailable
from ironcart.toolkit.topology import Durable, Stream, difference

STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014


async def ensure(
    broker: Broker,
    streams: Sequence[Stream],
    durables: Sequence[Durable],
    *,
    replicas: int,
    bytes_max: int,
    first_seqs: Mapping[str, int] | None = None,
) -> list[str]:
    """Create or change what is not as declared; returns what was done, a phrase each.

    `first_seqs` says where a stream begins that has to be made again. Safe to repeat. Raises
    `Refused` when JetStream will not change something, saying what.
    """
    done: list[str] = []
    for stream in streams:
        wanted = stream.config(replicas=replicas, bytes_max=bytes_max)
        there = await _config(broker, f"STREAM.INFO.{stream.name}", STREAM_NOT_FOUND)
        done += await _apply(
            broker,
            f"stream {stream.name}",
            wanted,
            there,
            create=(
                f"STREAM.CREATE.{stream.name}",
                wanted | {"first_seq": (first_seqs or {}).get(stream.name, 0)},
            ),
            update=(f"STREAM.UPDATE.{stream.name}", (there or {}) | wanted),
        )
    for durable in durables:
        wanted = durable.config()
        name = f"{durable.stream}.{durable.name}"
        there = await _config(broker, f"CONSUMER.INFO.{name}", CONSUMER_NOT_FOUND)
        request = {"stream_name": durable.stream, "config": wanted}
        done += await _apply(
            broker,
            f"consumer {durable.name} of {durable.stream}",
            wanted,
            there,
            create=(f"CONSUMER.CREATE.{name}", request | {"action": "create"}),
            update=(f"CONSUMER.CREATE.{name}", request | {"action": "update"}),
        )
    return done


async def compare(broker: Broker, durables: Sequence[Durable]) -> list[str]:
    """Say which consumers are missing or not as declared; changes nothing."""
    found: list[str] = []
    for durable in durables:
        there = await _config(
            broker, f"CONSUMER.INFO.{durable.stream}.{durable.name}", CONSUMER_NOT_FOUND
        )
        where = f"consumer {durable.name} of {durable.stream}"
        if there is None:
            found.append(f"{where} is missing")
        else:
            found += [f"{where}: {phrase}" for phrase in difference(durable.config(), there)]
    return found


async def stream_exists(broker: Broker, stream: str) -> bool:
    """Say whether there is this stream; raises `Unavailable` when nobody can tell."""
    return await _config(broker, f"STREAM.INFO.{stream}", STREAM_NOT_FOUND) is not None


async def consumer_exists(broker: Broker, stream: str, durable: str) -> bool:
    """Say whether a stream has this consumer; raises `Unavailable` when nobody can tell."""
    found = await _config(broker, f"CONSUMER.INFO.{stream}.{durable}", CONSUMER_NOT_FOUND)
    return found is not None


async def start_over(broker: Broker, durable: Durable) -> None:
    """Have everything delivered again, from the first message on; safe to repeat.

    What is in hand is delivered once more, too. Raises `Unavailable` when there is none.
    """
    try:
        await broker.api(f"CONSUMER.RESET.{durable.stream}.{durable.name}", {"seq": 1})
    except BrokerError as error:
        if error.err_code != CONSUMER_NOT_FOUND:
            raise
        where = f"consumer {durable.name} of {durable.stream}"
        raise Unavailable(f"{where} is missing: run `ironcart provision`") from error


Call = tuple[str, dict[str, Any]]


async def _apply(
    broker: Broker,
    what: str,
    wanted: dict[str, Any],
    there: dict[str, Any] | None,
    *,
    create: Call,
    update: Call,
) -> list[str]:
    if there is not None and not (phrases := difference(wanted, there)):
        return []
    try:
        if there is None:
            await broker.api(*create)
            return [f"{what}: created"]
        await broker.api(*update)
    except BrokerError as error:
        changes = "" if there is None else f" ({'; '.join(phrases)})"
        raise Refused(f"JetStream refuses {what} as declared: {error}{changes}") from error
    return [f"{what}: {'; '.join(phrases)}: changed"]


async def _config(broker: Broker, subject: str, absent: int) -> dict[str, Any] | None:
    try:
        config: dict[str, Any] = (await broker.api(subject))["config"]
    except BrokerError as error:
        if error.err_code in (absent, STREAM_NOT_FOUND):
            return None
        raise
    return config
