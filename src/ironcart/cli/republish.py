"""`ironcart republish`: refills a broker whose disk is gone from the services' own histories."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ironcart.cli import address, provision, services
from ironcart.cli.deadletters import connected
from ironcart.cli.floors import BEFORE, floors, patient
from ironcart.events import OWNERS, STREAMS
from ironcart.services.audit.handlers.chain import lose
from ironcart.toolkit import settings
from ironcart.toolkit.broker import Broker, BrokerError, Outgoing, publish
from ironcart.toolkit.broker.reader import Extent, extent, read
from ironcart.toolkit.database import Database
from ironcart.toolkit.deadletters import ACTIONS
from ironcart.toolkit.envelope import decode
from ironcart.toolkit.history import Outbox
from ironcart.toolkit.outcomes import IroncartError, Poison, Refused, Unavailable
from ironcart.toolkit.topology import DEAD_LETTERS

NOT_HEADERS_OF_OURS = "Nats-"
KEPT = "republish"
SWEEP_PAUSE_S = 0.2
# Of what is still unpublished so many events are tried one by one, to know what keeps them back.
TRIED_EVENTS_MAX = 100

TOO_LARGE = 10054
FULL = (10047, 10077)
TO_CHANGE = {
    TOO_LARGE: "its max_msg_size is not as declared: run `ironcart provision`"
} | dict.fromkeys(
    FULL, "give it more room: raise IRONCART_STREAM_BYTES_MAX and run `ironcart provision`"
)


def republish(
    recreate: Annotated[
        bool,
        typer.Option(help="Delete and make again a stream that has gone back in time."),
    ] = False,
    data: address.Data = address.DATA_DEFAULT,
) -> None:
    """Publish again what a lost or rolled-back broker does not have. Safe to repeat.

    Streams that are missing are made again, beginning above every sequence ever given out.
    """
    for line in asyncio.run(_republish(data, recreate=recreate)):
        print(line)


async def _republish(data: Path, *, recreate: bool) -> list[str]:
    where = address.find(data)
    done: list[str] = []
    async with connected(where) as broker:
        known = await floors(where.databases)
        for stream in STREAMS:
            held = await _held(broker, stream.name)
            if held is not None and held.last_seq < known[stream.name]:
                ends = f"stream {stream.name} ends at {held.last_seq} of {known[stream.name]}"
                if not recreate:
                    raise Refused(
                        f"{ends}: it was rolled back; `ironcart republish --recreate` deletes it,"
                        " makes it again and publishes everything that the services remember"
                    )
                await _keep_foreign(broker, stream.name, data, where.databases)
                await broker.api(f"STREAM.DELETE.{stream.name}")
                done.append(f"{ends}: deleted")
        done += await provision.streams(_environ(data, where))
        for file in sorted((data / KEPT).glob("*.jsonl")):
            messages = _kept(file)
            for message in messages:
                await _publish(broker, file.stem, message)
            file.unlink()
            done.append(f"{file.stem}: kept {len(messages)} messages that no history has")
        for stream in STREAMS:
            lost = await _admit_loss(broker, stream.name, where.databases["audit"])
            if lost:
                done.append(f"audit: {lost} messages of {stream.name} were never seen")
        letters = await extent(broker, DEAD_LETTERS)
        for name in services.NAMES:
            async with _database(where.databases[name], name) as database:
                await database.execute(_UNMARK_LETTERS, letters.first_seq)
                await database.execute(_UNMARK_EVENTS, letters.first_seq, [*ACTIONS.values()])
                await database.execute(_UNMARK_BATCHES, letters.first_seq, [*ACTIONS.values()])
        for owner, (name, kinds) in OWNERS.items():
            subjects = list(kinds.values())
            count = await _refill(broker, where.databases[owner], owner, name, subjects)
            done.append(f"{name}: {count} events published again")
    return done


def _environ(data: Path, where: address.Addresses) -> Mapping[str, str]:
    """What provisioning is told: by a running `ironcart up`, else by the environment."""
    environ = settings.environment()
    if not address.is_running(data):
        return environ
    urls = where.nats_url.split(",")
    return environ | {
        "IRONCART_NATS_URL": where.nats_url,
        "IRONCART_TLS_DIR": where.tls_dir,
        "IRONCART_DATABASE_URL": where.databases["orders"],
        "IRONCART_VAULT_DATABASE_URL": where.databases["vault"],
        "IRONCART_STREAM_REPLICAS": str(min(3, len(urls))),
    }


async def _held(broker: Broker, stream: str) -> Extent | None:
    try:
        return await extent(broker, stream)
    except BrokerError as error:
        if error.code == 404:
            return None
        raise


async def _keep_foreign(
    broker: Broker, stream: str, data: Path, databases: Mapping[str, str]
) -> None:
    """Keep what no history has on disk, before its stream is deleted; whoever is cut short later
    finds it there. What arrives meanwhile is kept, too."""
    folder = data / KEPT
    folder.mkdir(parents=True, exist_ok=True)
    held = await extent(broker, stream)
    first = held.first_seq
    with (folder / f"{stream}.jsonl").open("ab") as file:
        while first <= held.last_seq:
            some = Extent(first, held.last_seq)
            for message in await _foreign(broker, stream, some, databases):
                file.write(msgspec.json.encode(message) + b"\n")
            first, held = held.last_seq + 1, await extent(broker, stream)
        file.flush()
        os.fsync(file.fileno())


def _kept(file: Path) -> list[Outgoing]:
    return [msgspec.json.decode(line, type=Outgoing) for line in file.read_bytes().splitlines()]


async def _foreign(
    broker: Broker, stream: str, held: Extent, databases: Mapping[str, str]
) -> list[Outgoing]:
    """Messages that no history has: somebody else's, not yet taken in. They must not be lost."""
    owner = next((owner for owner, (name, _) in OWNERS.items() if name == stream), None)
    found: list[Outgoing] = []
    async with _database(databases[owner or "audit"], owner or "audit") as database:
        async for chunk in read(broker, stream, held.first_seq, held.last_seq):
            keys = {}
            for message in chunk:
                try:
                    keys[message.seq] = decode(message.body).key
                except Poison:
                    continue
            known = set()
            if owner is not None:
                rows = await database.fetch(
                    "SELECT id FROM events WHERE id = ANY($1::uuid[])", list(keys.values())
                )
                known = {row["id"] for row in rows}
            for message in chunk:
                if keys.get(message.seq) in known:
                    continue
                own = {
                    name: value
                    for name, value in message.headers.items()
                    if not name.startswith(NOT_HEADERS_OF_OURS)
                }
                message_id = message.headers.get("Nats-Msg-Id", f"{stream}:{message.seq}")
                found.append(Outgoing(message_id, message.subject, message.body, own))
    return found


async def _admit_loss(broker: Broker, stream: str, url: str) -> int:
    """Have the audit say which sequences it never saw and never will."""
    held = await extent(broker, stream)
    async with _database(url, "audit") as database, database.transaction() as connection:
        return await lose(connection, stream, held.first_seq)


async def _refill(broker: Broker, url: str, owner: str, stream: str, subjects: list[str]) -> int:
    """Publish again what lies before the stream's beginning; returns how many events that were.

    Raises `Refused`, with what to change, when the stream does not take one of them.
    """
    held = await extent(broker, stream)
    async with _database(url, owner) as database:
        async with database.transaction() as connection:
            count: int = await connection.fetchval(BEFORE, held.first_seq, subjects)
            await connection.execute(_UNMARK_EVENTS, held.first_seq, subjects)
            await connection.execute(_UNMARK_BATCHES, held.first_seq, subjects)
        outbox = Outbox(broker, database)
        while True:
            try:
                while await outbox.sweep():
                    pass
            except Unavailable as error:
                if (refusal := _refusal(error)) is not None:
                    raise _refused(stream, "events", refusal) from error
                raise
            if not (left := await database.fetch(_UNPUBLISHED, subjects, TRIED_EVENTS_MAX)):
                return count
            # Services that run sweep too, and what they have claimed is waited for; but what the
            # stream refuses would be waited for in vain. A repeat has the same id.
            for row in left:
                parent, _, state = row["traceparent"].partition(" ")
                headers = {"traceparent": parent} | ({"tracestate": state} if state else {})
                message = Outgoing(str(row["id"]), row["subject"], row["body"], headers)
                await _publish(broker, stream, message)
            await asyncio.sleep(SWEEP_PAUSE_S)


async def _publish(broker: Broker, stream: str, message: Outgoing) -> None:
    """Publish one message; raises `Refused`, with what to change, when the stream says no."""
    try:
        await publish(broker, [message])
    except (BrokerError, Unavailable) as error:
        if (refusal := _refusal(error)) is None:
            raise
        what = f"{message.subject} {message.message_id} of {len(message.body)} bytes"
        raise _refused(stream, what, refusal) from error


def _refusal(error: IroncartError) -> BrokerError | None:
    """The stream's "no", if it is one: of a full stream JetStream says that it is unavailable."""
    cause = error if isinstance(error, BrokerError) else error.__cause__
    if isinstance(cause, BrokerError) and (cause is error or cause.err_code in FULL):
        return cause
    return None


def _refused(stream: str, what: str, error: BrokerError) -> Refused:
    change = TO_CHANGE.get(error.err_code, "see `ironcart doctor`")
    again = "then run `ironcart republish` again"
    return Refused(f"stream {stream} refuses {what}: {error}; {change}, {again}")


@asynccontextmanager
async def _database(url: str, schema: str) -> AsyncIterator[Database]:
    database = patient(url, schema, "republish")
    try:
        yield database
    finally:
        await database.close()


_UNMARK_EVENTS = """
UPDATE events SET stream_seq = NULL WHERE stream_seq < $1 AND subject = ANY($2::text[])
"""
_UNMARK_BATCHES = """
UPDATE batches b SET first_seq = NULL, claimed_at = NULL WHERE first_seq < $1
  AND EXISTS (SELECT 1 FROM events e
              WHERE e.batch_no = b.batch_no AND e.subject = ANY($2::text[]))
"""
# The services keep their own letters again, once nobody can say where they are.
_UNMARK_LETTERS = """
UPDATE parked SET letter_seq = NULL WHERE letter_seq < $1 AND state = 'parked'
"""
_UNPUBLISHED = """
SELECT e.id, e.subject, e.traceparent, e.body FROM batches b JOIN events e USING (batch_no)
WHERE b.first_seq IS NULL AND b.recorded_at < now() - interval '2 seconds'
  AND e.subject = ANY($1::text[])
ORDER BY b.batch_no, e.batch_pos LIMIT $2
"""
