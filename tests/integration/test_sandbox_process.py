"""The sandbox as a process: killed, stopped, started again, and kept from starting."""

import asyncio
import json
import smtplib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import stripe
from sandbox_parts import (
    PATIENCE_S,
    call,
    charges,
    confirm,
    create,
    fault,
    running_sandbox,
    stripe_client,
    until,
)

from ironcart.embedded.ports import HOST
from ironcart.embedded.sandbox.server import SandboxServer


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxServer]:
    with running_sandbox(tmp_path) as server:
        yield server


@pytest.fixture
async def client(sandbox: SandboxServer) -> AsyncIterator[stripe.StripeClient]:
    async with stripe_client(sandbox) as made:
        yield made


def send_mail(sandbox: SandboxServer) -> None:
    host, _, port = sandbox.smtp.partition(":")
    with smtplib.SMTP(host, int(port)) as server:
        server.sendmail("a@b.example", ["c@d.example"], b"Message-ID: <m-1@shop>\r\n\r\nHello\r\n")


async def test_ledger_keys_and_mail_survive_a_kill_in_the_middle_of_writing(
    sandbox: SandboxServer, client: stripe.StripeClient, tmp_path: Path
) -> None:
    intents = [await create(client, f"create-{number}") for number in range(20)]
    for number, intent in enumerate(intents[:10]):
        await confirm(client, intent.id, f"confirm-{number}")
    await client.v1.refunds.create_async({"payment_intent": intents[0].id, "amount": 1})
    await asyncio.to_thread(send_mail, sandbox)
    await fault(sandbox, "down")
    before = await charges(sandbox)
    mail = await call(sandbox, "GET", "sandbox/mail")

    sandbox.kill()
    for name in ("ledger.jsonl", "mail.jsonl"):
        with (tmp_path / "sandbox" / name).open("ab") as file:
            file.write(b'{"at":17')
    sandbox.start()

    assert await charges(sandbox) == before
    assert await call(sandbox, "GET", "sandbox/mail") == mail
    for number, intent in enumerate(intents[:10]):
        repeat = await confirm(client, intent.id, f"confirm-{number}")
        assert repeat.status == "succeeded"
    assert (await create(client, "create-7")).id == intents[7].id
    assert await charges(sandbox) == before


async def test_killed_under_load_it_has_kept_every_answer_it_gave(
    sandbox: SandboxServer, client: stripe.StripeClient
) -> None:
    answered: set[str] = set()

    async def shop(number: int) -> None:
        while True:
            try:
                intent = await create(client)
                await confirm(client, intent.id, f"confirm-{intent.id}")
            except stripe.APIConnectionError:
                return
            answered.add(intent.id)

    shops = [asyncio.create_task(shop(number)) for number in range(8)]

    async def enough() -> bool:
        return len(answered) > 100

    await until(enough)
    sandbox.kill()
    await asyncio.gather(*shops)
    sandbox.start()

    captured = {charge["id"] for charge in await charges(sandbox) if charge["captured"] == 1999}
    assert answered <= captured


async def test_a_stop_is_clean_even_with_requests_that_a_fault_holds(
    sandbox: SandboxServer, client: stripe.StripeClient, tmp_path: Path
) -> None:
    intent = await create(client)
    await fault(sandbox, "slow", delay_s=60)
    held = [asyncio.create_task(confirm(client, intent.id, "k"))]

    async def captured() -> bool:
        return bool((await charges(sandbox))[0]["captured"] == 1999)

    await until(captured)
    await fault(sandbox, "hang")
    held.append(asyncio.create_task(confirm(client, intent.id, "k2")))

    async def hung() -> bool:
        return bool((await call(sandbox, "GET", "sandbox/faults"))["hits"]["hang"] == 1)

    await until(hung)
    process = sandbox._running
    assert process is not None
    await asyncio.to_thread(sandbox.terminate)

    assert process.returncode == 0
    ends = await asyncio.gather(*held, return_exceptions=True)
    assert [type(end) for end in ends] == [stripe.APIConnectionError] * 2
    lines = [json.loads(line) for line in (tmp_path / "sandbox.log").read_text().splitlines()]
    assert [line["msg"] for line in lines] == ["Sandbox started", "Fault set", "Fault set"]


def test_what_stands_in_the_way_of_a_start_is_one_line(
    sandbox: SandboxServer, tmp_path: Path
) -> None:
    taken = sandbox.url.rpartition(":")[2]
    command = [sys.executable, "-m", "ironcart.embedded.sandbox", "--data"]
    (tmp_path / "file").touch()
    starts = {
        f"cannot listen on {HOST}:{taken}": [str(tmp_path / "other"), "--port", taken],
        "is in use by another sandbox": [str(tmp_path)],
        "cannot open": [str(tmp_path / "file")],
    }
    for says, arguments in starts.items():
        ended = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert ended.returncode == 1
        assert says in ended.stderr
        assert ended.stderr.count("\n") == 1


async def test_a_key_lives_as_long_as_it_is_told(tmp_path: Path) -> None:
    with running_sandbox(tmp_path, "--key-life-s", "0.001") as server:
        async with stripe_client(server) as client:
            first = await create(client, "k")

            async def forgotten() -> bool:
                return (await create(client, "k")).id != first.id

            await until(forgotten)
