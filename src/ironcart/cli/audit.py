"""`ironcart audit verify·keygen`: the audit trail judged by an outsider, and the key it is signed
with. Whoever runs `verify` needs to read audit's tables, the export, and the public keys.
"""

import gc
import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from ironcart.toolkit import signing, tls
from ironcart.toolkit.settings import environment
from ironcart.verify.auditing import Request, judge
from ironcart.verify.facts import CannotReadError
from ironcart.verify.rundata import read_run

EXIT_CHANGED = 1
EXIT_NOT_JUDGED = 2
# What `ironcart up` keeps below its folder.
CHECKPOINTS = Path("audit", "checkpoints")
PUBLIC_KEY = Path("audit", "signing.key.pub")
# In the order in which they are asked.
DATABASE_URLS = ("IRONCART_AUDIT_DATABASE_URL", "IRONCART_DATABASE_URL")
REMEMBERED = re.compile(r"([1-9]\d{0,17}):([0-9a-f]{64})")

app = typer.Typer(help="Judge the audit trail; make the key it is signed with.")


@app.command()
def verify(
    *,
    data: Annotated[
        Path, typer.Option(help="Folder of `ironcart up`, for whatever is not named below.")
    ] = Path(".ironcart"),
    database_url: Annotated[
        str, typer.Option(help="Else from IRONCART_AUDIT_DATABASE_URL or the folder.")
    ] = "",
    checkpoints: Annotated[
        str, typer.Option(help="Folder, file or URL to which checkpoints are exported.")
    ] = "",
    public_key: Annotated[
        list[Path] | None,
        typer.Option(help="Public keys in the order in which they were in use; repeat it."),
    ] = None,
    from_checkpoint: Annotated[
        int, typer.Option(min=1, help="Trust what this one says, and judge what came after it.")
    ] = 1,
    expect: Annotated[
        str, typer.Option(metavar="N:HASH", help="A checkpoint that an earlier run named.")
    ] = "",
    headers_file: Annotated[
        Path | None, typer.Option(help="Lines `Name: value`, to be sent to the URL.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON line.")
    ] = False,
) -> None:
    """Recompute the audit trail and hold it against the signed checkpoints.

    Exit 1 when something was changed, 2 when something could not be judged.
    """
    # One pass over millions of rows without a cycle among them: collecting finds nothing.
    gc.disable()
    try:
        request = Request(
            database_url=_database_url(data, database_url),
            checkpoints=checkpoints or str(data / CHECKPOINTS),
            public_keys=public_key or [data / PUBLIC_KEY],
            first=from_checkpoint,
            headers=_headers(headers_file),
            expect=_remembered(expect, from_checkpoint),
        )
        report = uvloop.run(judge(request))
    except CannotReadError as error:
        print(f"ironcart audit verify: cannot read: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_NOT_JUDGED) from None
    finally:
        gc.enable()
    print(json.dumps(report.as_json()) if as_json else "\n".join(report.lines()))
    if report.faults:
        raise typer.Exit(EXIT_CHANGED)
    if report.unjudged:
        raise typer.Exit(EXIT_NOT_JUDGED)


@app.command()
def keygen(
    path: Annotated[
        Path, typer.Argument(help="File for the private key; PATH.pub gets the other.")
    ],
) -> None:
    """Make a key to sign checkpoints with. The private one goes to the audit service alone."""
    kept = path.with_name(path.name + signing.PUBLIC_SUFFIX)
    if kept.exists() and not path.exists():
        print(
            f"ironcart audit keygen: {kept} exists, and what its key signed is verified with it:"
            " name another file",
            file=sys.stderr,
        )
        raise typer.Exit(1)
    try:
        public = signing.generate(path)
    except FileExistsError:
        print(f"ironcart audit keygen: {path} exists: name another file", file=sys.stderr)
        raise typer.Exit(1) from None
    except OSError as error:
        print(f"ironcart audit keygen: {path}: {error.strerror}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"{path}: give it to audit as IRONCART_AUDIT_SIGNING_KEY_FILE, and to nobody else")
    print(f"{public}: give it to whoever verifies")


def _database_url(data: Path, told: str) -> str:
    """What was told, or what the environment says: with TLS the database has to show who it is."""
    environ = dict(environment())
    if told:
        environ[DATABASE_URLS[0]] = told
    if told or not (data / "run.json").exists():
        environ = tls.verified(environ)
        for name in DATABASE_URLS:
            if environ.get(name):
                return environ[name]
    return read_run(data).postgres_url


def _remembered(text: str, first: int) -> tuple[int, str] | None:
    if not text:
        return None
    found = REMEMBERED.fullmatch(text.lower())
    if not found:
        raise typer.BadParameter(f"--expect {text}: give number and SHA-256 as N:HASH")
    if int(found[1]) < first:
        raise typer.BadParameter(f"--expect {text}: judged only from checkpoint {first} on")
    return int(found[1]), found[2]


def _headers(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise CannotReadError(f"{path}: {error.strerror}") from None
    pairs = (line.partition(":") for line in lines if line.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}
