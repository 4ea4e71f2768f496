"""Stands where nats-py's client does: one connection, in order both ways, that may break."""

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping

from nats.errors import ConnectionClosedError, NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from ironcart.toolkit.broker.wire import Listener
from simulation.broker import JetStream, Msg
from simulation.clock import Process
from simulation.world import World

RECONNECT_S_MAX = 1.0
_numbers = itertools.count(1)


class Wire:
    """One direction: what is on it arrives in order, or is lost when the connection breaks."""

    def __init__(self, world: World, arrive: Callable[[Msg], None]) -> None:
        self._world, self._arrive = world, arrive
        self._on_it: deque[Msg] = deque()
        self._last = 0.0

    def send(self, message: Msg) -> None:
        """Put a message on it."""
        loop = self._world.loop
        self._last = max(self._last, loop.time() + self._world.latency_s())
        self._on_it.append(message)
        loop.outside(self._last - loop.time(), self._one)

    def _one(self) -> None:
        if self._on_it:
            self._arrive(self._on_it.popleft())

    def flush(self) -> None:
        """Let everything on it arrive."""
        while self._on_it:
            self._one()

    def cut(self) -> None:
        """Let the first few arrive, and lose the rest."""
        for _ in range(self._world.rng.randint(0, len(self._on_it))):
            self._one()
        if self._on_it:
            self._world.note("messages lost with a connection")
        self._on_it.clear()


class Listening:
    """A subscription: its listener is called by a task of the process, one message at a time."""

    def __init__(self, client: "SimulatedClient", subject: str, hear: Listener) -> None:
        self._client, self._subject = client, subject
        self.queue: asyncio.Queue[Msg] = asyncio.Queue()
        self._task = asyncio.get_running_loop().create_task(self._listen(hear))

    async def _listen(self, hear: Listener) -> None:
        while True:
            message = await self.queue.get()
            hear(message.subject, message.reply, message.data, message.headers or {})

    async def unsubscribe(self) -> None:
        """Hear no more."""
        self._client.listening.pop(self._subject, None)
        self._task.cancel()


class SimulatedClient:
    """As much of `nats.aio.client.Client` as the toolkit uses."""

    def __init__(self, world: World, server: JetStream, process: Process) -> None:
        self._world, self._server, self._process = world, server, process
        self._number = next(_numbers)
        self._inboxes = itertools.count(1)
        self.listening: dict[str, Listening] = {}
        self._answers: dict[str, asyncio.Future[Msg]] = {}
        self._buffered: list[Msg] = []
        self.is_connected, self.is_closed = server.up, False
        self.lost_at = -math.inf  # when a request of it was last lost
        self.stats = {"reconnects": 0}
        self.is_draining_pubs, self._flush_queue = False, None
        self._out = Wire(world, lambda message: server.take(self, message))
        self._in = Wire(world, self._arrived)
        server.clients.append(self)
        process.on_crash.append(self.disconnect)
        if not self.is_connected:
            world.loop.outside(RECONNECT_S_MAX, self._reconnect)

    def disconnect(self) -> None:
        """Break the connection; it comes back by itself once the server is there."""
        if self.is_connected:
            self.is_connected = False
            self._out.cut()
            self._in.cut()
            for consumer in self._server.consumers.values():
                consumer.forget(self)
            self._world.loop.outside(self._world.rng.uniform(0.1, 1.0), self._reconnect)

    def _reconnect(self) -> None:
        if not self._process.alive or self.is_closed or self.is_connected:
            return
        if not self._server.up or self._process.frozen:
            self._world.loop.outside(0.3, self._reconnect)
            return
        self.is_connected = True
        self.stats["reconnects"] += 1
        self._world.note("reconnect")
        for message in self._buffered:
            self._out.send(message)
        self._buffered.clear()

    def receive(self, message: Msg) -> None:
        """Something is on its way from the server."""
        if self.is_connected:
            self._in.send(message)

    def _arrived(self, message: Msg) -> None:
        if (waiting := self._answers.pop(message.to, None)) is not None:
            if not waiting.done():
                waiting.set_result(message)
        elif (listening := self.listening.get(message.to)) is not None:
            listening.queue.put_nowait(message)

    def new_inbox(self) -> str:
        """An address for answers."""
        return f"_INBOX.{self._number}.{next(self._inboxes)}"

    async def listen(self, subject: str, hear: Listener) -> Listening:
        """Hear what is sent to an inbox."""
        found = self.listening[subject] = Listening(self, subject, hear)
        return found

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        reply: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send; while the connection is away it waits in a buffer, as nats-py has it."""
        if self.is_closed:
            raise ConnectionClosedError
        self._world.say(f"sends {subject} {payload[:24]!r}", self._process)
        message = Msg(subject, payload, reply, headers)
        if self._world.happens(self._world.weather.lose_request):
            self._world.note("request to the broker that was lost")
            self.lost_at = asyncio.get_running_loop().time()
        elif self.is_connected:
            self._out.send(message)
        else:
            self._buffered.append(message)

    async def _send_command(self, commands: bytes) -> None:
        """Send what was put together by `toolkit.broker.wire`."""
        while commands:
            line, _, commands = commands.partition(b"\r\n")
            verb, subject, *sizes = line.decode().split()
            size, head_size = int(sizes[-1]), int(sizes[0]) if verb == "HPUB" else 0
            _, *lines = commands[:head_size].decode().strip().split("\r\n")
            headers = dict(each.split(": ", 1) for each in lines) if verb == "HPUB" else None
            await self.publish(subject, commands[head_size:size], headers=headers)
            commands = commands[size + 2 :]

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> Msg:
        """Send and await the answer."""
        if self._world.happens(self._world.weather.lose_request / 4):
            raise NoRespondersError
        inbox = self.new_inbox()
        answer = self._answers[inbox] = self._world.loop.create_future()
        try:
            await self.publish(subject, payload, inbox, headers)
            async with asyncio.timeout(timeout):
                found: Msg = await answer
                return found
        except TimeoutError as error:
            raise NatsTimeoutError from error
        finally:
            self._answers.pop(inbox, None)

    async def flush(self, timeout: float) -> None:
        """Wait until everything sent has arrived, and everything sent to us before that is here."""
        await self.request("PING", timeout=timeout)

    async def close(self) -> None:
        """Send what is buffered, and go."""
        await asyncio.sleep(0)
        self.is_closed = True
        if self.is_connected:
            self._out.flush()
        self.disconnect()
