"""Events that come again, in another order, or as garbage."""

import secrets
from collections.abc import Callable
from functools import partial
from random import Random

from nats.aio.client import Client

from chaos.outside import STREAMS
from chaos.row import Arena, Felt, Row

AGAIN_MAX = 60
ABSORBED_WITHIN_S = 30.0
PARKED_WITHIN_S = 30.0
AUDIT = "audit"
LARGEST_BYTES = 1_000_000
Choose = Callable[[int, Random], list[int]]


def newest(last: int, _draw: Random) -> list[int]:
    """The last events of a stream, in order."""
    return list(range(max(1, last - AGAIN_MAX + 1), last + 1))


def scattered(last: int, draw: Random) -> list[int]:
    """Events from the whole life of a stream, in any order."""
    return draw.sample(range(1, last + 1), min(AGAIN_MAX, last))


async def again(arena: Arena, felt: Felt, *, choose: Choose) -> None:
    """Publish old events of every stream again under new message ids, as no deduplication sees."""
    sent = 0
    before = arena.meters.totals["duplicates"]
    felt.inject()
    async with arena.outside.broker() as client:
        jetstream = client.jetstream(timeout=5)
        for stream in STREAMS[:-1]:
            state = (await jetstream.stream_info(stream)).state
            for at in choose(state.last_seq - state.first_seq + 1, arena.draw):
                message = await jetstream.get_msg(stream, state.first_seq + at - 1)
                if "Nats-Msg-Id" not in (message.headers or {}):
                    continue  # another row's garbage: again, it would be one more dead letter
                headers = {"Nats-Msg-Id": f"chaos-{secrets.token_hex(8)}"}
                await jetstream.publish(message.subject or "", message.data or b"", headers=headers)
                sent += 1
    felt.heal()

    async def absorbed() -> bool:
        return arena.meters.totals["duplicates"] - before > 0

    await arena.outside.until(absorbed, ABSORBED_WITHIN_S)
    count = arena.meters.totals["duplicates"] - before
    felt.saw(f"{sent} events published again, {count:.0f} duplicates absorbed", proof=count > 0)


async def corrupt(arena: Arena, felt: Felt) -> None:
    """Put garbage on every subject that somebody reads; each reader has to set it aside."""
    rubbish = [b"\x00\xff no event", b'{"type":"NoSuchThing"}', b"[" * 5_000]
    rubbish.append(arena.draw.randbytes(arena.draw.randrange(1, LARGEST_BYTES)))
    async with arena.outside.broker() as client:
        jetstream = client.jetstream(timeout=5)
        readers = await _readers(client)
        before = (await jetstream.stream_info(STREAMS[-1])).state.messages
        felt.inject()
        for subject in sorted(readers):
            for body in rubbish:
                await jetstream.publish(subject, body)
        felt.heal()
        felt.dead_letters = sum(readers.values()) * len(rubbish)

        async def all_parked() -> bool:
            now = (await jetstream.stream_info(STREAMS[-1])).state.messages
            return now - before >= felt.dead_letters

        done = await arena.outside.until(all_parked, PARKED_WITHIN_S)
        now = (await jetstream.stream_info(STREAMS[-1])).state.messages
    felt.saw(
        f"{len(readers) * len(rubbish)} pieces of garbage, {now - before} dead letters", proof=done
    )


async def _readers(client: Client) -> dict[str, int]:
    """Return how many services read each subject; audit, which parks nothing, is not counted."""
    found: dict[str, int] = {}
    jetstream = client.jetstream(timeout=5)
    for stream in STREAMS[:-1]:
        for consumer in await jetstream.consumers_info(stream):
            if consumer.name == AUDIT:
                continue
            config = consumer.config
            for subject in config.filter_subjects or [config.filter_subject or ""]:
                found[subject] = found.get(subject, 0) + 1
    found.pop("", None)
    return found


MESSAGE_ROWS = (
    Row("events published twice", partial(again, choose=newest)),
    Row("old events again, in any order", partial(again, choose=scattered)),
    Row("corrupt events on every subject", corrupt),
)
