"""The mailer against real servers, and against one that answers whatever a test wants."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope
from prometheus_client import REGISTRY
from sandbox_parts import call, fault, heal, running_sandbox

from ironcart.embedded.ports import free_port
from ironcart.services.notifications.gateway import (
    Letter,
    Mailer,
    Recipient,
    Refusal,
    Stationery,
    mail_server,
)
from ironcart.services.notifications.gateway.mailer import _Slots
from ironcart.toolkit.outcomes import Refused, Unavailable
from ironcart.toolkit.resilience import Breaker, BreakerOpen, BreakerState
from ironcart.toolkit.telemetry import watch_breaker

MAILER = "ironcart.services.notifications.gateway.mailer"
SENDER = "orders@ironcart.example"
EHLO = b"250-test\r\n250-PIPELINING\r\n250 SMTPUTF8\r\n"
EHLO_CHUNKING = b"250-test\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 SMTPUTF8\r\n"
EHLO_SEQUENTIAL = b"250 test\r\n"
REPLIES = {"GREET": b"220 test\r\n", "EHLO": EHLO, "DATA": b"354 go on\r\n"}


stationery = Stationery(SENDER)


def letter(address: str = "anna@b.example", order_id: str = "ORD-1", name: str = "Anna") -> Letter:
    return stationery.write(
        "confirmed",
        Recipient(address, name, "00ff"),
        order_id=order_id,
        amount="39.98 EUR",
        reason=None,
    )


class Scripted:
    """An SMTP server that answers each command as the script says; None: hang up, b"": hang."""

    def __init__(self, script: Mapping[str, bytes | None]) -> None:
        self.script: dict[str, bytes | None] = {**REPLIES, **script}
        self.connections = 0
        self.messages: list[bytes] = []
        self.verbs: list[str] = []
        self.letters_max, self.goodbye = 10**9, b""  # of one connection, and what is said then
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            greeting = self.script["GREET"]
            if greeting is None:
                return
            writer.write(greeting)
            letters = 0
            while line := await reader.readline():
                verb = line.split(b" ")[0].strip().upper().decode()
                self.verbs.append(verb)
                letters += verb == "MAIL"
                if letters > self.letters_max:
                    writer.write(self.goodbye)
                    return
                if verb == "BDAT":
                    self.messages.append(await reader.readexactly(int(line.split()[1])))
                    verb = "CONTENT"
                if not await self._answer(verb, writer):
                    break
                if verb == "DATA" and (self.script["DATA"] or b"").startswith(b"354"):
                    self.messages.append(await reader.readuntil(b"\r\n.\r\n"))
                    if not await self._answer("CONTENT", writer):
                        break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, verb: str, writer: asyncio.StreamWriter) -> bool:
        reply = self.script.get(verb, b"250 fine\r\n")
        if reply is None:
            return False
        writer.write(reply)
        await writer.drain()
        return True

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def scripted(
    script: Mapping[str, bytes | None] | None = None, breaker: Breaker | None = None
) -> AsyncIterator[tuple[Scripted, Mailer]]:
    behaviour = Scripted(script or {})
    server = await asyncio.start_server(behaviour.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    mailer = Mailer(mail_server(f"smtp://127.0.0.1:{port}"), SENDER, breaker=breaker)
    try:
        yield behaviour, mailer
    finally:
        await mailer.close()
        behaviour.hang_up()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("ehlo", [EHLO, EHLO_CHUNKING, EHLO_SEQUENTIAL])
async def test_many_letters_share_few_connections(ehlo: bytes) -> None:
    async with scripted({"EHLO": ehlo}) as (server, mailer):
        answers = await asyncio.gather(
            *(mailer.send(letter(order_id=f"ORD-{n}")) for n in range(100))
        )
        assert answers == [None] * 100
        assert len(server.messages) == 100
        assert server.connections <= 8


async def test_a_server_that_takes_chunks_gets_a_letter_in_one_go() -> None:
    async with scripted({"EHLO": EHLO_CHUNKING}) as (server, mailer):
        sent = [letter(), letter(order_id="ORD-2", name="..Anna")]
        assert [await mailer.send(each) for each in sent] == [None, None]
        assert server.messages == [each.content for each in sent]
        assert server.verbs == ["EHLO", *["MAIL", "RCPT", "BDAT"] * 2]


async def test_on_a_connection_that_has_rested_the_message_waits_for_the_envelope(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with scripted({"EHLO": EHLO_CHUNKING}) as (server, mailer):
        assert await mailer.send(letter()) is None
        monkeypatch.setattr(f"{MAILER}.RESTED_S_MAX", 0.0)
        assert await mailer.send(letter()) is None
        server.script["MAIL"] = None  # Dropped just as it is taken: tried on another at once.
        with pytest.raises(Unavailable):
            await mailer.send(letter())
        assert server.verbs[4:] == ["MAIL", "RCPT", "DATA", "MAIL", "EHLO", "MAIL"]


@pytest.mark.parametrize("goodbye", [b"", b"421 enough\r\n"], ids=["silently", "with 421"])
@pytest.mark.parametrize("ehlo", [EHLO, EHLO_CHUNKING])
async def test_a_server_that_takes_so_many_letters_a_connection_is_no_outage(
    ehlo: bytes, goodbye: bytes
) -> None:
    async with scripted({"EHLO": ehlo}) as (server, mailer):
        server.letters_max, server.goodbye = 5, goodbye
        letters = [letter(order_id=f"ORD-{n}") for n in range(200)]
        assert await asyncio.gather(*(mailer.send(each) for each in letters)) == [None] * 200
        assert len(server.messages) == 200
        assert mailer.breaker.state is BreakerState.CLOSED


async def test_a_reply_too_many_is_not_taken_for_the_next_letters() -> None:
    async with scripted({"EHLO": EHLO_CHUNKING}) as (server, mailer):
        server.script["CONTENT"] = b"250 fine\r\n250 and another\r\n"
        assert await mailer.send(letter()) is None
        server.script["CONTENT"] = b"550 no\r\n"
        assert await mailer.send(letter()) == Refusal(550)
        assert server.connections == 2


async def test_a_letter_that_was_taken_before_the_server_closed_is_taken() -> None:
    async with scripted({"EHLO": EHLO_CHUNKING}) as (server, mailer):
        server.script["CONTENT"] = b"250 queued\r\n421 bye\r\n"
        assert await mailer.send(letter()) is None


async def test_after_a_letter_sent_in_one_go_is_refused_the_next_has_a_connection_of_its_own() -> (
    None
):
    script = {"EHLO": EHLO_CHUNKING, "CONTENT": b"554 5.7.1 not this\r\n"}
    async with scripted(script) as (server, mailer):
        assert await mailer.send(letter()) == Refusal(554)
        server.script["CONTENT"] = b"250 fine\r\n"
        assert await mailer.send(letter()) is None
        assert server.connections == 2


async def test_a_letter_waits_for_a_connection_only_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{MAILER}.SLOT_TIMEOUT_S", 0.05)
    async with scripted({"MAIL": b""}) as (_, mailer):
        sending = [asyncio.create_task(mailer.send(letter())) for _ in range(8)]
        await asyncio.sleep(0)  # They are in first.
        with pytest.raises(Unavailable, match="every connection to the mail server is busy"):
            await mailer.send(letter())
        assert mailer.breaker.state is BreakerState.CLOSED
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)


async def test_whoever_is_cancelled_as_its_turn_comes_gives_it_to_the_next() -> None:
    slots = _Slots(1)
    await slots.take()
    cancelled, waiting = (asyncio.create_task(slots.take()) for _ in range(2))
    await asyncio.sleep(0)  # Both stand in line.
    slots.give()
    cancelled.cancel()
    async with asyncio.timeout(5):
        await waiting
    slots.give()
    async with asyncio.timeout(5):
        await slots.take()
    assert cancelled.cancelled()


@pytest.mark.parametrize("ehlo", [EHLO, EHLO_CHUNKING, EHLO_SEQUENTIAL])
async def test_a_refused_recipient_is_a_refusal_and_the_next_letter_travels(ehlo: bytes) -> None:
    async with scripted({"EHLO": ehlo, "RCPT": b"550 5.1.1 no such user\r\n"}) as (server, mailer):
        assert await mailer.send(letter()) == Refusal(550)
        server.script["RCPT"] = b"250 fine\r\n"
        assert await mailer.send(letter()) is None
        assert mailer.breaker.state is BreakerState.CLOSED


async def test_a_refused_content_is_a_refusal() -> None:
    async with scripted({"CONTENT": b"554-no\r\n554 5.7.1 not this\r\n"}) as (_, mailer):
        assert await mailer.send(letter()) == Refusal(554)


async def test_an_address_that_the_server_cannot_take_is_a_refusal() -> None:
    async with scripted({"EHLO": EHLO_SEQUENTIAL}) as (server, mailer):
        assert await mailer.send(letter("zoë@b.example")) == Refusal(553)
        assert server.messages == []
    async with scripted() as (server, mailer):
        assert await mailer.send(letter("zoë@b.example")) is None


async def test_a_deferred_recipient_is_tried_again_and_says_nothing_about_the_server() -> None:
    async with scripted({"RCPT": b"450 4.2.1 greylisted\r\n"}) as (_, mailer):
        for _ in range(10):
            with pytest.raises(Unavailable, match="450"):
                await mailer.send(letter())
        assert mailer.breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize("ehlo", [EHLO, EHLO_CHUNKING])
@pytest.mark.parametrize(
    "script",
    [
        {"GREET": b"421 busy\r\n"},
        {"GREET": None},
        {"EHLO": None, "HELO": None},
        {"MAIL": b"451 later\r\n"},
        {"MAIL": b"550 5.7.1 not you\r\n"},
        {"MAIL": None},
        {"RCPT": b"421 closing\r\n"},
        {"RCPT": b"530 log in first\r\n"},
        {"EHLO": EHLO, "DATA": b"451 later\r\n"},
        {"CONTENT": b"451 later\r\n"},
        {"CONTENT": None},
        {"RCPT": b"garbage\r\n"},
    ],
)
async def test_whatever_may_pass_is_an_outage(script: dict[str, bytes | None], ehlo: bytes) -> None:
    async with scripted({"EHLO": ehlo, **script}) as (_, mailer):
        with pytest.raises(Unavailable):
            await mailer.send(letter())


async def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONNECT_TIMEOUT_S", "CONVERSATION_TIMEOUT_S"):
        monkeypatch.setattr(f"{MAILER}.{name}", 0.2)
    chunked = {"EHLO": EHLO_CHUNKING, "CONTENT": b""}
    for script in ({"GREET": b""}, {"MAIL": b""}, {"CONTENT": b""}, chunked):
        async with scripted(script) as (_, mailer):
            with pytest.raises(Unavailable):
                await mailer.send(letter())


async def test_a_connection_that_was_dropped_while_idle_costs_no_attempt() -> None:
    async with scripted() as (server, mailer):
        assert await mailer.send(letter()) is None
        server.hang_up()
        assert await mailer.send(letter()) is None
        server.script["MAIL"] = None  # Dropped just as it is taken.
        with pytest.raises(Unavailable):
            await mailer.send(letter())
        assert len(server.messages) == 2


@pytest.mark.parametrize("ehlo", [EHLO, EHLO_CHUNKING])
async def test_a_letter_whose_fate_is_unknown_is_not_sent_again_by_itself(ehlo: bytes) -> None:
    async with scripted({"EHLO": ehlo}) as (server, mailer):
        assert await mailer.send(letter()) is None
        server.script["CONTENT"] = None
        with pytest.raises(Unavailable):
            await mailer.send(letter())
        assert len(server.messages) == 2


async def test_the_breaker_opens_probes_and_closes_and_its_state_is_a_metric() -> None:
    def shown(state: str) -> float | None:
        labels = {"breaker": "smtp-test", "state": state}
        return REGISTRY.get_sample_value("ironcart_breaker_state", labels)

    now = 0.0
    breaker = Breaker("smtp-test", on_change=watch_breaker, clock=lambda: now)
    async with scripted({"MAIL": b"451 later\r\n"}, breaker) as (server, mailer):
        assert shown("closed") == 1
        for _ in range(6):
            with pytest.raises(Unavailable):
                await mailer.send(letter())
        assert (shown("closed"), shown("open")) == (0, 1)
        with pytest.raises(BreakerOpen):
            await mailer.send(letter())
        now += 31
        server.script["MAIL"] = b"250 fine\r\n"
        assert await mailer.send(letter()) is None
        assert (shown("closed"), shown("open")) == (1, 0)


async def test_refused_credentials_are_refused_with_what_to_change() -> None:
    script = {
        "EHLO": b"250-test\r\n250-PIPELINING\r\n250 AUTH PLAIN\r\n",
        "AUTH": b"535 5.7.8 wrong\r\n",
    }
    async with scripted(script) as (_, mailer):
        port = mailer._server.port
        wrong = Mailer(mail_server(f"smtp://shop:secret@127.0.0.1:{port}"), SENDER)
        with pytest.raises(Refused, match="IRONCART_SMTP_URL") as caught:
            await wrong.send(letter())
        assert "secret" not in str(caught.value)


async def test_nobody_listening_is_an_outage() -> None:
    mailer = Mailer(mail_server("smtp://127.0.0.1:1"), SENDER)
    with pytest.raises(Unavailable):
        await mailer.send(letter())


class Kept:
    """What aiosmtpd caught."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Envelope) -> str:  # noqa: N802
        content = envelope.content
        assert isinstance(content, bytes)
        self.contents.append(content)
        return "250 OK"


async def test_another_real_server_gets_the_very_bytes() -> None:
    kept = Kept()
    controller = Controller(kept, hostname="127.0.0.1", port=free_port())
    controller.start()
    try:
        mailer = Mailer(mail_server(f"smtp://127.0.0.1:{controller.port}"), SENDER)
        sent = [letter(), letter(order_id="ORD-2", name="..Anna")]
        for each in sent:
            assert await mailer.send(each) is None
        await mailer.close()
    finally:
        controller.stop()
    assert kept.contents == [each.content for each in sent]


async def test_the_sandbox_catches_mail_and_its_faults_are_told_apart(tmp_path: Path) -> None:
    with running_sandbox(tmp_path) as sandbox:
        mailer = Mailer(mail_server(f"smtp://{sandbox.smtp}"), SENDER)
        assert await mailer.send(letter()) is None
        await fault(sandbox, "mail_reject")
        assert await mailer.send(letter()) == Refusal(550)
        await fault(sandbox, "mail_error")
        with pytest.raises(Unavailable):
            await mailer.send(letter())
        await heal(sandbox)
        await fault(sandbox, "mail_down")
        with pytest.raises(Unavailable):
            await mailer.send(letter())
        await heal(sandbox)
        assert await mailer.send(letter()) is None
        await mailer.close()
        (first, second) = await call(sandbox, "GET", "sandbox/mail?order_id=ORD-1")
        assert first == second
        assert first["message_id"] == letter().message_id
