"""A TCP proxy between two parts, which delays, resets, holds or cuts what passes, and counts it.

Every decision is drawn from the link's own seeded generator, never from the clock.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, fields

CHUNK_BYTES = 64 * 1024
IN_FLIGHT_CHUNKS_MAX = 256
COMMIT = b"COMMIT"

Target = Callable[[], tuple[str, int]]


@dataclass(slots=True)
class Counts:
    """What a link has done so far."""

    connections: int = 0
    refused: int = 0
    bytes_passed: int = 0
    bytes_delayed: int = 0
    bytes_held: int = 0
    resets: int = 0
    answers_cut: int = 0

    def since(self, before: "Counts") -> "Counts":
        """Return the difference to an earlier copy."""
        return Counts(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))

    def copy(self) -> "Counts":
        """Return the counts as they are now."""
        return self.since(Counts())


class Link:
    """One listening port in front of `target`, which is looked up anew for each connection.

    `delay_s` holds each chunk for so long in each direction, `reset_rate` is the chance of a chunk
    to reset its connection instead; `hold` stops all traffic until `release`; after `cut_answers`
    so many COMMITs reach the database while their answers do not reach the client.
    """

    def __init__(self, name: str, target: Target, seed: int) -> None:
        self.name = name
        self.delay_s = 0.0
        self.reset_rate = 0.0
        self.counts = Counts()
        self._target = target
        self._draw = random.Random(f"{seed}/{name}")  # noqa: S311 - repeatable, not secret
        self._cuts_left = 0
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def listen(self, port: int) -> None:
        """Begin to listen on a port of the loopback address."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def hold(self) -> None:
        """Let nothing pass, as a partition does: nobody is told, bytes wait."""
        self._open.clear()

    def release(self) -> None:
        """Let everything pass again, first what was held."""
        self._open.set()

    def cut_answers(self, count: int) -> None:
        """Lose the answers to the next `count` COMMITs, and their connections."""
        self._cuts_left = count

    def heal(self) -> None:
        """Pass everything on at once again."""
        self.delay_s = self.reset_rate = 0.0
        self._cuts_left = 0
        self.release()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            await self._join(reader, writer)
        except asyncio.CancelledError:
            return  # Only `close` cancels; the stream's own callback would log it as a fault.
        finally:
            self._running.discard(task)
            _abort(writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        self.counts.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target())
        except OSError:
            self.counts.refused += 1
            return
        wire = _Wire(self, (reader, writer), (far_reader, far_writer))
        try:
            await wire.run()
        finally:
            _abort(far_writer)

    def takes_commit(self, chunk: bytes) -> bool:
        """Say whether the answer to this chunk has to be lost."""
        if self._cuts_left and COMMIT in chunk:
            self._cuts_left -= 1
            return True
        return False

    def resets_now(self) -> bool:
        """Draw whether this chunk resets its connection."""
        return self.reset_rate > 0 and self._draw.random() < self.reset_rate

    async def may_pass(self, size: int) -> None:
        """Wait until the link is open."""
        if not self._open.is_set():
            self.counts.bytes_held += size
            await self._open.wait()


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Wire:
    """One connection through a link: two directions, which end together."""

    def __init__(self, link: Link, near: Ends, far: Ends) -> None:
        self._link = link
        self._near, self._far = near, far
        self._losing_answer = False

    async def run(self) -> None:
        """Pass bytes on until either side ends; never raises for what a network does."""
        ways = [
            asyncio.ensure_future(self._way(self._near[0], self._far[1], asks=True)),
            asyncio.ensure_future(self._way(self._far[0], self._near[1], asks=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _way(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, asks: bool
    ) -> None:
        """Read on one side and write on the other, in order, each chunk after its delay."""
        clock = asyncio.get_running_loop().time
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT_CHUNKS_MAX)

        async def write() -> None:
            while True:
                due_s, chunk = await chunks.get()
                if (wait_s := due_s - clock()) > 0:
                    self._link.counts.bytes_delayed += len(chunk)
                    await asyncio.sleep(wait_s)
                if not chunk or not await self._pass_on(chunk, sink, asks=asks):
                    return

        async def read() -> None:
            chunk = b"-"
            while chunk:
                try:
                    chunk = await source.read(CHUNK_BYTES)
                except OSError:
                    chunk = b""
                await chunks.put((clock() + self._link.delay_s, chunk))

        reading = asyncio.ensure_future(read())
        try:
            await write()
        except OSError:
            return
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _pass_on(self, chunk: bytes, sink: asyncio.StreamWriter, *, asks: bool) -> bool:
        """Write one chunk; False when the connection is to end here."""
        link = self._link
        await link.may_pass(len(chunk))
        if not asks and self._losing_answer:
            # The server has done it: its answer is here, and goes no further.
            link.counts.answers_cut += 1
            return False
        if link.resets_now():
            link.counts.resets += 1
            return False
        if asks and link.takes_commit(chunk):
            self._losing_answer = True
        sink.write(chunk)
        await sink.drain()
        link.counts.bytes_passed += len(chunk)
        return True


def _abort(writer: asyncio.StreamWriter) -> None:
    transport = writer.transport
    with contextlib.suppress(OSError):
        transport.abort()
