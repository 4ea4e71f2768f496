"""DIR/run.json: where the running system is."""

import json
import ssl
from dataclasses import dataclass
from pathlib import Path

from ironcart.verify.facts import CannotReadError


@dataclass(frozen=True, slots=True)
class Running:
    """The addresses verify needs, and the certificates where the system asks for them."""

    nats_urls: list[str]
    postgres_url: str
    sandbox_url: str
    service_urls: dict[str, str]
    tls_dir: str = ""

    def tls(self) -> ssl.SSLContext | None:
        """Show our certificate, and trust those of the same issuer; None without TLS."""
        if not self.tls_dir:
            return None
        folder = Path(self.tls_dir)
        try:
            context = ssl.create_default_context(cafile=folder / "ca.crt")
            context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        except OSError as error:
            raise CannotReadError(f"the certificates in {folder}: {error}") from None
        return context


def read_run(data: Path) -> Running:
    """Read DIR/run.json; raises `CannotReadError` saying what to do when it cannot."""
    path = data / "run.json"
    try:
        run = json.loads(path.read_bytes())
        return Running(
            nats_urls=[str(url) for url in run["nats"]["urls"]],
            postgres_url=str(run["postgres"]["url"]),
            sandbox_url=str(run["sandbox"]["url"]).rstrip("/"),
            service_urls={
                name: str(service["url"]) for name, service in run.get("services", {}).items()
            },
            tls_dir=str(run.get("tls", {}).get("dir", "")),
        )
    except FileNotFoundError:
        raise CannotReadError(
            f"{path} does not exist: start the system with `ironcart up --data {data}`, "
            "or name its folder with --data"
        ) from None
    except OSError as error:
        raise CannotReadError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CannotReadError(f"{path} is not a run.json: {error!r}") from None
