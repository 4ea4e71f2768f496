"""Where a running system is: from the run.json of `ironcart up`, or from the environment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ironcart.cli.services import NAMES
from ironcart.toolkit import settings, tls
from ironcart.toolkit.outcomes import Refused

# For a broker that does not answer: over TLS it says nothing to who speaks plainly.
TLS_HINT = "if it wants TLS set IRONCART_TLS_DIR"
RUN_FILE = "run.json"
DATA_DEFAULT = Path(".ironcart")

Data = Annotated[
    Path, typer.Option(help="Folder of a running `ironcart up`; else the environment is used.")
]


class Addresses(msgspec.Struct, frozen=True, kw_only=True):
    """Where the parts are. Databases are by schema, services by name where they are known."""

    nats_url: str
    databases: Mapping[str, str]
    nats_monitor_url: str = ""
    tls_dir: str = ""
    services: Mapping[str, str] = msgspec.field(default_factory=dict)


class _Environment(msgspec.Struct, frozen=True, kw_only=True):
    nats_url: str
    database_url: str
    nats_monitor_url: str = ""


def is_running(data: Path) -> bool:
    """Whether `ironcart up` says that it runs in this folder."""
    return (data / RUN_FILE).exists()


def find(data: Path) -> Addresses:
    """Read where the system is; raises `Refused` when neither place says so."""
    try:
        run: dict[str, Any] = msgspec.json.decode((data / RUN_FILE).read_bytes())
        return Addresses(
            nats_url=",".join(run["nats"]["urls"]),
            nats_monitor_url=",".join(run["nats"]["monitor_urls"]),
            databases=dict.fromkeys((*NAMES, "vault"), run["postgres"]["url"]),
            services={name: each["url"] for name, each in run["services"].items()},
            tls_dir=run.get("tls", {}).get("dir", ""),
        )
    except FileNotFoundError:
        pass
    except (msgspec.MsgspecError, KeyError, IndexError, OSError) as error:
        raise Refused(f"{data / RUN_FILE} cannot be read: {error}") from error
    environ = tls.verified(settings.environment())
    if "IRONCART_NATS_URL" not in environ:
        raise Refused(f"nothing runs in {data}: name its folder (--data) or set IRONCART_NATS_URL")
    found = [settings.load(_Environment, environ, name) for name in NAMES]
    return Addresses(
        nats_url=found[0].nats_url,
        nats_monitor_url=found[0].nats_monitor_url,
        tls_dir=settings.load(tls.Settings, environ).tls_dir,
        databases={name: each.database_url for name, each in zip(NAMES, found, strict=True)},
    )
