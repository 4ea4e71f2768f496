"""`ironcart apikey`: keys for callers of the HTTP API, kept as hashes in a file."""

import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ironcart.toolkit.http.access.apikeys import (
    BURST_MAX,
    PREFIX,
    RATE_PER_S_MAX,
    RATE_PER_S_MIN,
    Entry,
    new_key,
    read_file,
    written,
)
from ironcart.toolkit.http.access.callers import Scope
from ironcart.toolkit.outcomes import Refused

PRIVATE = 0o600

app = typer.Typer(help="Make and revoke API keys.", no_args_is_help=True)


@app.command()
def new(
    *,
    name: Annotated[str, typer.Option(help="Who calls; several keys of one name are one caller.")],
    scope: Annotated[Scope, typer.Option(help="What the caller may do.")],
    rate: Annotated[
        float | None,
        typer.Option(
            min=RATE_PER_S_MIN,
            max=RATE_PER_S_MAX,
            help="Requests a second; else as the services say.",
        ),
    ] = None,
    burst: Annotated[
        int | None, typer.Option(min=1, max=BURST_MAX, help="Requests at once; else 2 s of rate.")
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0, max=36_500, help="Days until it expires; else never.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Add the entry to this file; running services see it.")
    ] = None,
) -> None:
    """Make a key and print it, this once; then the entry that services know it by.

    With --file the entry goes there, and only the key is printed.
    """
    end = None if days is None else datetime.now(UTC) + timedelta(days=days)
    drawn, unchecked = new_key(name, scope, rate_per_s=rate, burst=burst, expires_at=end)
    try:
        entry = msgspec.convert(msgspec.to_builtins(unchecked), Entry)
    except msgspec.ValidationError as error:
        raise Refused(f"this would be no key: {error}") from None
    if file is None:
        print(drawn)
        print(msgspec.json.encode(entry).decode())
        return
    with _alone_with(file):
        keys = read_file(file).keys if file.exists() else ()
        _write(file, [*keys, entry])
    print(drawn)
    known = sum(each.name == name for each in keys)
    also = f"; {name} has {known} more, and is the same caller with each" if known else ""
    typer.echo(f"added to {file} as {entry.id}{also}", err=True)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(help="The key's id, ID in ick_ID_…; or the whole key.")],
    file: Annotated[Path, typer.Option(help="Take its entry out of this file.")],
) -> None:
    """Revoke a key: services refuse it within seconds of seeing the file."""
    # Of a whole key the rest is a secret: nothing here repeats it.
    key_id = key.removeprefix(PREFIX.decode()).partition("_")[0]
    with _alone_with(file):
        keys: Sequence[Entry] = read_file(file).keys
        left = [each for each in keys if each.id != key_id]
        if len(left) == len(keys):
            raise Refused(f"{file} has no key {key_id}: it has {', '.join(k.id for k in keys)}")
        _write(file, left)
    typer.echo(f"revoked {key_id}", err=True)


def _write(file: Path, keys: Sequence[Entry]) -> None:
    """Put the keys in the file, which keeps mode and owner; a new one is its owner's only.

    A link stays one: services read what it leads to. A crash leaves the old file or the new.
    """
    place = Path(os.path.realpath(file))
    before = place.stat() if place.exists() else None
    beside = place.with_name(place.name + ".new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    with os.fdopen(descriptor, "w") as fresh:
        if before is not None:
            _hand_over(descriptor, before, file)
        fresh.write(written(keys))
        fresh.flush()
        os.fsync(descriptor)
    beside.replace(place)


def _hand_over(descriptor: int, before: os.stat_result, file: Path) -> None:
    """Give an open file the owner and the mode of the one before it: services read it still."""
    mine = os.fstat(descriptor)
    try:
        if (mine.st_uid, mine.st_gid) != (before.st_uid, before.st_gid):
            os.fchown(descriptor, before.st_uid, before.st_gid)
    except PermissionError:
        owner = f"user {before.st_uid}, group {before.st_gid}"
        raise Refused(f"{file} belongs to {owner}: run this as its owner, or as root") from None
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


@contextmanager
def _alone_with(file: Path) -> Iterator[None]:
    """Keep others from changing the file meanwhile: they write a new one beside it, as we do."""
    try:
        folder = os.open(Path(os.path.realpath(file)).parent, os.O_RDONLY)
    except OSError as error:
        raise Refused(f"{file.parent}: {error.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    except PermissionError as error:
        raise Refused(f"{file}: {error.strerror}") from None
    finally:
        os.close(folder)
