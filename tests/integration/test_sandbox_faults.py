"""The gateway misbehaving on demand: what it then did, and that the truth is told all the same."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import stripe
from sandbox_parts import (
    PATIENCE_S,
    call,
    charges,
    confirm,
    create,
    fault,
    heal,
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


@pytest.mark.parametrize("mode", ["down", "error"])
async def test_down_and_error_move_nothing_and_leave_the_key_free(
    sandbox: SandboxServer, client: stripe.StripeClient, mode: str
) -> None:
    intent = await create(client)
    await fault(sandbox, mode)

    raised = stripe.APIConnectionError if mode == "down" else stripe.APIError
    with pytest.raises(raised):
        await confirm(client, intent.id, "k")
    [before] = await charges(sandbox)
    await heal(sandbox)
    paid = await confirm(client, intent.id, "k")

    assert before["captured"] == 0
    assert paid.status == "succeeded"


async def test_an_error_that_had_begun_is_replayed_until_its_key_expires(
    sandbox: SandboxServer, client: stripe.StripeClient
) -> None:
    intent = await create(client)
    await fault(sandbox, "error", begun=True)
    with pytest.raises(stripe.APIError):
        await confirm(client, intent.id, "k")
    await heal(sandbox)

    with pytest.raises(stripe.APIError):
        await confirm(client, intent.id, "k")
    await call(sandbox, "POST", "sandbox/keys/expire")
    assert (await confirm(client, intent.id, "k")).status == "succeeded"


async def test_a_lost_response_has_acted_and_its_repeat_does_not_act_again(
    sandbox: SandboxServer, client: stripe.StripeClient
) -> None:
    intent = await create(client)
    await fault(sandbox, "lose_response")

    with pytest.raises(stripe.APIConnectionError) as raised:
        await confirm(client, intent.id, "k")
    [after_loss] = await charges(sandbox)
    await heal(sandbox)
    repeat = await confirm(client, intent.id, "k")
    [after_repeat] = await charges(sandbox)

    assert isinstance(raised.value.__cause__, ConnectionResetError | aiohttp.ClientOSError)
    assert after_loss["captured"] == 1999
    assert repeat.status == "succeeded"
    assert after_repeat == after_loss


async def test_slow_captures_at_once_and_answers_late_with_its_key_in_use(
    sandbox: SandboxServer, client: stripe.StripeClient
) -> None:
    intent = await create(client)
    await fault(sandbox, "slow", delay_s=1.0)

    late = asyncio.create_task(confirm(client, intent.id, "k"))

    async def captured() -> bool:
        return [charge["captured"] for charge in await charges(sandbox)] == [1999]

    await until(captured)
    assert not late.done()
    await heal(sandbox)
    with pytest.raises(stripe.APIError) as raised:
        await confirm(client, intent.id, "k")
    assert raised.value.http_status == 409
    assert (await late).status == "succeeded"
    assert (await confirm(client, intent.id, "k")).status == "succeeded"


async def test_hang_answers_nothing_until_the_client_leaves(sandbox: SandboxServer) -> None:
    await fault(sandbox, "hang")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.3)) as session:
        with pytest.raises(TimeoutError):
            await session.get(f"{sandbox.url}/v1/payment_intents")


async def test_decline_declines_what_would_have_been_taken(
    sandbox: SandboxServer, client: stripe.StripeClient
) -> None:
    intent = await create(client)
    await fault(sandbox, "decline")

    with pytest.raises(stripe.CardError) as raised:
        await confirm(client, intent.id, "k")

    assert raised.value.code == "card_declined"
    report = await call(sandbox, "GET", "sandbox/faults")
    assert [on["mode"] for on in report["faults"]] == ["decline"]
    assert report["hits"]["decline"] == 1


async def test_a_rate_hits_a_part_of_the_requests(
    sandbox: SandboxServer, client: stripe.StripeClient
) -> None:
    await fault(sandbox, "error", rate=0.5)
    results = await asyncio.gather(*(create(client) for _ in range(60)), return_exceptions=True)
    failed = [result for result in results if isinstance(result, stripe.APIError)]
    assert 5 < len(failed) < 55
    assert len(await charges(sandbox)) == 60 - len(failed)


async def test_a_fault_ends_by_itself(sandbox: SandboxServer, client: stripe.StripeClient) -> None:
    await fault(sandbox, "down", seconds=0.2)

    async def healed() -> bool:
        try:
            await create(client)
        except stripe.APIConnectionError:
            return False
        return True

    await until(healed)


async def test_the_truth_is_told_whatever_the_fault(sandbox: SandboxServer) -> None:
    for mode in ("down", "slow", "error", "decline", "lose_response", "hang"):
        await fault(sandbox, mode)
    assert await charges(sandbox) == []
    assert await call(sandbox, "GET", "sandbox/mail") == []
    assert await call(sandbox, "GET", "health") == {"status": "ok"}
    wrong = await call(sandbox, "POST", "sandbox/faults", {"mode": "up"}, status=400)
    assert wrong["error"].startswith("mode must be one of down, slow")
    await call(sandbox, "GET", "sandbox/nothing", status=404)
    await call(sandbox, "GET", "nothing", status=404)
    assert (await call(sandbox, "DELETE", "sandbox/faults"))["faults"] == []


def test_a_down_fault_closes_the_socket_without_a_byte(sandbox: SandboxServer) -> None:
    asyncio.run(fault(sandbox, "down"))
    port = int(sandbox.url.rpartition(":")[2])
    with socket.create_connection((HOST, port), timeout=PATIENCE_S) as sock:
        sock.sendall(b"GET /v1/payment_intents HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(1) == b""
