"""The sandbox as a server to start, kill and start again; it comes back on the same ports."""

import sys
from pathlib import Path

from ironcart.embedded.ports import HOST
from ironcart.embedded.process import Child, Server, ports_ready


class SandboxServer(Server):
    """One sandbox process. Its ledger, mail and endpoints are kept in `folder/sandbox`."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        smtp_port: int,
        options: tuple[str, ...] = (),
        log: Path | None = None,
        inherit: tuple[int, ...] = (),
    ) -> None:
        self.url = f"http://{HOST}:{port}"
        self.smtp = f"{HOST}:{smtp_port}"
        self._folder = folder.absolute()
        self._ports = (port, smtp_port)
        self._options = options
        self._log = log or self._folder / "sandbox.log"
        self._inherit = inherit

    def child(self) -> Child:
        """Say how to run it."""
        port, smtp_port = self._ports
        return Child(
            name="sandbox",
            argv=(
                *(sys.executable, "-m", "ironcart.embedded.sandbox"),
                *("--data", str(self._folder)),
                *("--port", str(port), "--smtp-port", str(smtp_port)),
                *self._options,
            ),
            log=self._log,
            ready=ports_ready(port, smtp_port),
            inherit=self._inherit,
        )
