"""`ironcart deadletters list·show`: what was set aside, and why."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from ironcart.cli import address
from ironcart.toolkit.broker import Broker
from ironcart.toolkit.deadletters import DeadLetter, find, read
from ironcart.toolkit.outcomes import Unavailable

CONNECT_TIMEOUT_S = 5.0
LISTED_DEFAULT = 100
BODY_CHARACTERS_SHOWN_MAX = 4_000

SHOWN = (
    "service",
    "type",
    "reason",
    "error",
    "attempts",
    "stream",
    "stream_seq",
    "subject",
    "parked_at",
    "headers",
)

app = typer.Typer(help="See what was set aside, and why.", no_args_is_help=True)
T = TypeVar("T")


@app.command("list")
def list_letters(
    service: Annotated[str, typer.Option(help="Only those of this service.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many at most, oldest first.")] = (
        LISTED_DEFAULT
    ),
    data: address.Data = address.DATA_DEFAULT,
) -> None:
    """List dead letters, oldest first, a line each."""

    async def gather(broker: Broker) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        async for letter in read(broker):
            if service in ("", letter.service):
                found.append(letter)
            if len(found) == limit:
                break
        return found

    letters = _with_broker(data, gather)
    if not letters:
        print("no dead letters")
        return
    for each in letters:
        origin = f"{each.subject} {each.stream_seq}"
        who = f"{each.service:<13} {each.type:<14}"
        print(
            f"{each.seq:>6}  {each.parked_at}  {who} x{each.attempts}  {origin:<32}  {each.reason}"
        )


@app.command("show")
def show_letter(
    seq: Annotated[int, typer.Argument(help="Its number in the list.")],
    raw: Annotated[bool, typer.Option(help="Write only the original bytes.")] = False,
    data: address.Data = address.DATA_DEFAULT,
) -> None:
    """Show one dead letter whole: why, from where, and the original bytes."""
    letter = _with_broker(data, lambda broker: find(broker, seq))
    if letter is None:
        typer.echo(f"ironcart deadletters: there is no dead letter {seq}", err=True)
        raise typer.Exit(1)
    if raw:
        typer.get_binary_stream("stdout").write(letter.body)
        return
    for name in SHOWN:
        print(f"{name:>11}: {getattr(letter, name)}")
    text = letter.body.decode(errors="backslashreplace")
    shown = text[:BODY_CHARACTERS_SHOWN_MAX]
    print(f"{'body':>11}: {shown}{' …' if len(shown) < len(text) else ''}")


def _with_broker(data: Path, ask: Callable[[Broker], Awaitable[T]]) -> T:
    async def run() -> T:
        async with connected(address.find(data).nats_url) as broker:
            return await ask(broker)

    return asyncio.run(run())


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Broker]:
    """Lend a connection to the broker; raises `Unavailable` when it does not answer in time."""
    broker = Broker(url, "cli")
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await broker.connect()
    except TimeoutError as error:
        raise Unavailable(f"the broker does not answer at {url.rpartition('@')[2]}") from error
    try:
        yield broker
    finally:
        await broker.close()
