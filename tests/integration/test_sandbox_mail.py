"""The mail catcher through real SMTP clients, and misbehaving on demand."""

import asyncio
import smtplib
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest
from sandbox_parts import call, fault, heal, running_sandbox

from ironcart.embedded.sandbox.server import SandboxServer


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxServer]:
    with running_sandbox(tmp_path) as server:
        yield server


def mail_to(sandbox: SandboxServer) -> dict[str, Any]:
    host, _, port = sandbox.smtp.partition(":")
    return {"hostname": host, "port": int(port), "start_tls": False}


def message(message_id: str = "m-1@shop") -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "shop@a.example", "c@b.example", "Grüße"
    made["Message-ID"], made["X-Ironcart-Order-Id"] = f"<{message_id}>", "ORD-1"
    made.set_content("Ihre Bestellung.\n.\n..zwei Punkte\n")
    made.add_alternative("<p>Ihre Bestellung</p>", subtype="html")
    return made


async def test_mail_is_caught_with_both_bodies(sandbox: SandboxServer) -> None:
    await aiosmtplib.send(message(), **mail_to(sandbox))
    await aiosmtplib.send(message(), **mail_to(sandbox))  # the same again is there twice
    await asyncio.to_thread(_send_by_smtplib, sandbox, message("m-2@shop"))

    listed = await call(sandbox, "GET", "sandbox/mail?order_id=ORD-1")
    found = await call(sandbox, "GET", "sandbox/mail/%3Cm-1@shop%3E")
    assert [mail["message_id"] for mail in listed] == ["m-1@shop", "m-1@shop", "m-2@shop"]
    assert listed[0] == {
        "message_id": "m-1@shop",
        "to": "c@b.example",
        "subject": "Grüße",
        "order_id": "ORD-1",
    }
    assert found["text"].splitlines() == ["Ihre Bestellung.", ".", "..zwei Punkte"]
    assert found["html"].strip() == "<p>Ihre Bestellung</p>"
    assert found["headers"]["X-Ironcart-Order-Id"] == "ORD-1"
    await call(sandbox, "GET", "sandbox/mail/none", status=404)


def _send_by_smtplib(sandbox: SandboxServer, mail: EmailMessage) -> None:
    host, _, port = sandbox.smtp.partition(":")
    with smtplib.SMTP(host, int(port)) as server:
        server.send_message(mail)


@pytest.mark.parametrize(("mode", "code"), [("mail_error", 451), ("mail_reject", 550)])
async def test_mail_is_refused_on_demand_on_a_connection_that_lives_on(
    sandbox: SandboxServer, mode: str, code: int
) -> None:
    async with aiosmtplib.SMTP(**mail_to(sandbox)) as server:
        await fault(sandbox, mode)
        with pytest.raises(aiosmtplib.SMTPDataError) as raised:
            await server.send_message(message())
        await heal(sandbox)
        await server.send_message(message())
    assert raised.value.code == code
    assert len(await call(sandbox, "GET", "sandbox/mail")) == 1


async def test_mail_down_hangs_up_on_new_and_kept_connections(sandbox: SandboxServer) -> None:
    kept = aiosmtplib.SMTP(**mail_to(sandbox))
    await kept.connect()
    await fault(sandbox, "mail_down")
    with pytest.raises(aiosmtplib.SMTPServerDisconnected):
        await kept.send_message(message())
    with pytest.raises(aiosmtplib.SMTPException):
        await aiosmtplib.send(message(), **mail_to(sandbox))
    kept.close()
    await heal(sandbox)
    await aiosmtplib.send(message(), **mail_to(sandbox))
