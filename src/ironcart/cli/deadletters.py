"""`ironcart deadletters list·show·edit·replay·discard`: what was set aside, why, and its repair."""

import asyncio
import getpass
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from ironcart.cli import address
from ironcart.cli.repair import Row, Standing, Who, actions, behind, repairing, row_of, standing
from ironcart.toolkit.broker import Broker
from ironcart.toolkit.deadletters import DeadLetter, find, read
from ironcart.toolkit.outcomes import Refused, Unavailable
from ironcart.toolkit.tls import Tls

CONNECT_TIMEOUT_S = 5.0
LISTED_DEFAULT = 100
# So many are looked up at once.
PAGE_LETTERS = 100
REPLAYS_A_SECOND = 50.0
UNRESOLVED = ("parked", "released")
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

By = Annotated[str, typer.Option(help="Who does it, for the audit trail; default: you.")]
Why = Annotated[str, typer.Option(help="Why, for the audit trail.")]
Databases = Mapping[str, str]

app = typer.Typer(help="See what was set aside and why, and repair it.", no_args_is_help=True)
T = TypeVar("T")


@app.command("list")
def list_letters(
    service: Annotated[str, typer.Option(help="Only those of this service.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many at most, oldest first.")] = (
        LISTED_DEFAULT
    ),
    everything: Annotated[
        bool, typer.Option("--all", help="Those that were dealt with, too.")
    ] = False,
    data: address.Data = address.DATA_DEFAULT,
) -> None:
    """List dead letters that wait for a person, oldest first, a line each."""

    async def tell(broker: Broker, databases: Databases) -> int:
        told = 0
        async for letter, stands in _letters(broker, databases, service):
            state = _state(stands)
            waiting = f", {stands.waiting} behind" if stands is not None and stands.waiting else ""
            if everything or state in UNRESOLVED:
                print(f"{_line(letter)}  {letter.reason} [{state}{waiting}]")
                told += 1
            if told == limit:
                break
        return told

    if not _ask(data, tell):
        print("no dead letters")


@app.command("show")
def show_letter(
    seq: Annotated[int, typer.Argument(help="Its number in the list.")],
    raw: Annotated[bool, typer.Option(help="Write only the original bytes.")] = False,
    data: address.Data = address.DATA_DEFAULT,
) -> None:
    """Show one dead letter whole: why, from where, what waits behind it, and what was done."""
    following: list[str] = []
    done: list[str] = []

    async def look(broker: Broker, databases: Databases) -> tuple[DeadLetter, Row | None]:
        letter = await _find(broker, seq)
        following.extend(await behind(letter, databases))
        done.extend(await actions(letter, databases))
        return letter, await row_of(letter, databases)

    letter, row = _ask(data, look)
    if raw:
        typer.get_binary_stream("stdout").write(letter.body)
        return
    for name in SHOWN:
        print(f"{name:>11}: {getattr(letter, name)}")
    if row is not None:
        print(
            f"{'state':>11}: {row.state}, replayed {row.replays} times, {row.waiting} wait behind"
        )
        if row.reason != letter.reason:
            print(f"{'last reason':>11}: {row.reason}")
    print(f"{'body':>11}: {_shown(letter.body)}")
    if row is not None and row.edited is not None:
        print(f"{'edited':>11}: {_shown(row.edited)}")
    for name, lines in (("behind", following), ("done", done)):
        for line in lines:
            print(f"{name:>11}: {line}")


@app.command("edit")
def edit_letter(
    seq: Annotated[int, typer.Argument(help="Its number in the list.")],
    file: Annotated[
        typer.FileBinaryRead, typer.Option(help="The new body, a whole event; - for the input.")
    ],
    by: By = "",
    why: Why = "",
    data: address.Data = address.DATA_DEFAULT,
) -> None:
    """Replace what will be replayed, once it is what its service can read."""
    body, who = file.read(), _who(by, why)

    async def act(broker: Broker, databases: Databases) -> None:
        letter = await _find(broker, seq)
        async with repairing(letter, databases) as repair:
            await repair.edit(body, who)

    _ask(data, act)
    print(f"{seq}: edited; `ironcart deadletters replay {seq}` has it dealt with")


@app.command("replay")
def replay_letters(
    seqs: Annotated[list[int] | None, typer.Argument(help="Their numbers in the list.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that are parked.")] = False,
    service: Annotated[str, typer.Option(help="With --all: only those of this service.")] = "",
    dry_run: Annotated[bool, typer.Option(help="Check and say what would be done.")] = False,
    rate: Annotated[float, typer.Option(min=0.1, help="How many a second, at most.")] = (
        REPLAYS_A_SECOND
    ),
    force: Annotated[bool, typer.Option(help="Also what keeps coming back.")] = False,
    by: By = "",
    why: Why = "",
    data: address.Data = address.DATA_DEFAULT,
) -> None:
    """Have messages dealt with again, each followed by what waits behind it, in order.

    Exit 1 when one is refused; the others are replayed.
    """
    if bool(seqs) == everything:
        raise Refused("name the dead letters, or say --all")
    who = _who(by, why)

    async def act(broker: Broker, databases: Databases) -> int:
        chosen = [(await _find(broker, seq)).seq for seq in seqs or ()]
        if everything:
            chosen = await _parked(broker, databases, service)
        refused = 0
        for seq in chosen:
            letter = await _find(broker, seq)
            try:
                await _replay(letter, databases, who, dry_run=dry_run, force=force)
            except Refused as error:
                refused += 1
                typer.echo(f"ironcart deadletters: {error}", err=True)
            else:
                await asyncio.sleep(0 if dry_run else 1 / rate)
        return refused

    if _ask(data, act):
        raise typer.Exit(1)


@app.command("discard")
def discard_letter(
    seq: Annotated[int, typer.Argument(help="Its number in the list.")],
    why: Annotated[str, typer.Option(help="Why it is given up.")],
    by: By = "",
    data: address.Data = address.DATA_DEFAULT,
) -> None:
    """Give a message up for good; what waits behind it goes on."""
    if not why.strip():
        raise Refused("say why (--why): it is kept in the audit trail")
    who = _who(by, why)

    async def act(broker: Broker, databases: Databases) -> int:
        letter = await _find(broker, seq)
        async with repairing(letter, databases) as repair:
            await repair.discard(who)
            return repair.row.waiting

    waiting = _ask(data, act)
    print(f"{seq}: discarded; {waiting} go on behind it")


async def _replay(
    letter: DeadLetter, databases: Databases, who: Who, *, dry_run: bool, force: bool
) -> None:
    async with repairing(letter, databases) as repair:
        message = repair.may_be_replayed(force=force)
        if not dry_run:
            await repair.replay(who, force=force)
    done = "would be replayed" if dry_run else "replayed"
    what = f"{message.envelope.type} of {message.envelope.aggregate_id}"
    print(f"{letter.seq}: {what} {done} by {letter.service}, {repair.row.waiting} behind it")


async def count_open(broker: Broker, databases: Databases) -> int:
    """Say how many dead letters wait for a person: those that are listed, without `--all`."""
    found = _letters(broker, databases, "")
    return len([letter.seq async for letter, stands in found if _state(stands) in UNRESOLVED])


async def _parked(broker: Broker, databases: Databases, service: str) -> list[int]:
    """The numbers of those that are parked by now: what comes meanwhile is left for later."""
    return [
        letter.seq
        async for letter, stands in _letters(broker, databases, service)
        if stands is not None and stands.state == "parked"
    ]


def _state(stands: Standing | None) -> str:
    """How a letter stands; one that no table knows was set aside, and nothing was done since."""
    return "parked" if stands is None else stands.state


async def _letters(
    broker: Broker, databases: Databases, service: str
) -> AsyncIterator[tuple[DeadLetter, Standing | None]]:
    """Go through what was set aside, by one service or by all, with how it stands now.

    The bodies are left out: all of them together may be larger than the memory.
    """
    page: list[DeadLetter] = []
    async for letter in _distinct(broker):
        if service in ("", letter.service):
            page.append(replace(letter, body=b""))
        if len(page) == PAGE_LETTERS:
            known = await standing(page, databases)
            for each in page:
                yield each, known.get(each.seq)
            page = []
    known = await standing(page, databases)
    for each in page:
        yield each, known.get(each.seq)


async def _distinct(broker: Broker) -> AsyncIterator[DeadLetter]:
    """Every message that was set aside, once, by its first letter."""
    seen: set[tuple[str, str, int]] = set()
    async for letter in read(broker):
        place = letter.service, letter.stream, letter.stream_seq
        if place not in seen:
            seen.add(place)
            yield letter


async def _find(broker: Broker, seq: int) -> DeadLetter:
    letter = await find(broker, seq)
    if letter is None:
        raise Refused(f"there is no dead letter {seq}")
    return letter


def _line(letter: DeadLetter) -> str:
    origin = f"{letter.subject} {letter.stream_seq}"
    who = f"{letter.service:<13} {letter.type:<14}"
    return f"{letter.seq:>6}  {letter.parked_at}  {who} x{letter.attempts}  {origin:<32}"


def _who(by: str, why: str) -> Who:
    return Who(by or getpass.getuser(), why)


def _shown(body: bytes) -> str:
    text = body.decode(errors="backslashreplace")
    shown = text[:BODY_CHARACTERS_SHOWN_MAX]
    return f"{shown}{' …' if len(shown) < len(text) else ''}"


def _ask(data: Path, ask: Callable[[Broker, Databases], Awaitable[T]]) -> T:
    async def run() -> T:
        where = address.find(data)
        async with connected(where) as broker:
            return await ask(broker, where.databases)

    return asyncio.run(run())


@asynccontextmanager
async def connected(where: address.Addresses) -> AsyncIterator[Broker]:
    """Lend a connection to the broker; raises `Unavailable` when it does not answer in time."""
    url = where.nats_url
    broker = Broker(url, "cli", Tls(Path(where.tls_dir)) if where.tls_dir else None)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await broker.connect()
    except TimeoutError as error:
        hint = "" if where.tls_dir else f"; {address.TLS_HINT}"
        shown = url.rpartition("@")[2]
        raise Unavailable(f"the broker does not answer at {shown}{hint}") from error
    try:
        yield broker
    finally:
        await broker.close()
