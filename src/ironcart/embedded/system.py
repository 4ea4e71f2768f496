"""The whole system as children of one supervisor, and run.json, which says where each part is."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from ironcart.embedded.folder import master_key, write_file
from ironcart.embedded.nats_server import NatsServer
from ironcart.embedded.placement import is_placed
from ironcart.embedded.ports import HOST, SERVICES, http_ports, kept_ports
from ironcart.embedded.postgres import Postgres
from ironcart.embedded.process import Child, http_ready, ports_ready
from ironcart.embedded.supervisor import Part

BROKER = "broker-1"
POSTGRES = "postgres"
SANDBOX = "sandbox"
LOAD = "load"
RUN_FILE = "run.json"
DRAIN_TIMEOUT_S = "30"
CLI = (sys.executable, "-m", "ironcart.cli")


class System:
    """What runs for the data folder `folder`; `lock` is its open lock, which every part holds.

    Raises `CannotStart` when a port is taken or the folder is damaged.
    """

    def __init__(
        self, folder: Path, *, first_port: int, environ: Mapping[str, str], lock: int
    ) -> None:
        self.folder = folder.absolute()
        self._environ = environ
        self._lock = lock
        self.forget_run()
        self.ports = http_ports(first_port)
        self._kept = kept_ports(self.folder, avoid=self.ports.values())
        self._master_key = master_key(self.folder, may_create=not is_placed(self.folder))
        self.broker = NatsServer(
            self.folder / "nats",
            port=self._kept["broker"],
            monitor_port=self._kept["broker_monitor"],
            name=BROKER,
            log=self.log_of(BROKER),
            inherit=(lock,),
        )
        self.postgres = Postgres(
            self.folder,
            port=self._kept["postgres"],
            log=self.log_of(POSTGRES),
            inherit=(lock,),
        )

    def log_of(self, name: str) -> Path:
        """Return the file that gets the output of a part."""
        return self.folder / "logs" / f"{name}.log"

    def url_of(self, name: str) -> str:
        """Return the address of a service or of the sandbox."""
        return f"http://{HOST}:{self.ports[name]}"

    def environ(self) -> dict[str, str]:
        """Return what provisioning and the services are told, but for a service's own port.

        The rest of our environment is passed on, save what would send one service elsewhere.
        """
        own = {
            "NATS_URL": self.broker.url,
            "NATS_MONITOR_URL": self.broker.monitor_url,
            "DATABASE_URL": self.postgres.url,
            "VAULT_DATABASE_URL": self.postgres.url,
            "MASTER_KEY": self._master_key,
            "STRIPE_API_KEY": "sk_test_sandbox",
            "STRIPE_API_BASE": self.url_of(SANDBOX),
            "SMTP_URL": f"smtp://{HOST}:{self._kept['smtp']}",
            "AUTH": "off",
            "HOST": HOST,
        }
        fixed = {*own, "PORT"}
        hidden = {f"IRONCART_{name.upper()}_{key}" for name in SERVICES for key in fixed}
        passed = {key: value for key, value in self._environ.items() if key not in hidden}
        defaults = {"IRONCART_LOG_LEVEL": "info", "IRONCART_DRAIN_TIMEOUT_S": DRAIN_TIMEOUT_S}
        return defaults | passed | {f"IRONCART_{key}": value for key, value in own.items()}

    def services(self) -> list[Child]:
        """Say how to run the five services."""
        environ = self.environ()
        return [
            Child(
                name=name,
                argv=(*CLI, "run", name),
                env=environ | {"IRONCART_PORT": str(self.ports[name])},
                log=self.log_of(name),
                ready=http_ready(f"{self.url_of(name)}/ready"),
                inherit=(self._lock,),
            )
            for name in SERVICES
        ]

    def sandbox(self) -> Child:
        """Say how to run the payment gateway and the mail catcher."""
        port, smtp_port = self.ports[SANDBOX], self._kept["smtp"]
        return Child(
            name=SANDBOX,
            argv=(
                *(sys.executable, "-m", "ironcart.embedded.sandbox"),
                *("--data", str(self.folder)),
                *("--port", str(port), "--smtp-port", str(smtp_port)),
            ),
            env=self._environ,
            log=self.log_of(SANDBOX),
            ready=ports_ready(port, smtp_port),
            inherit=(self._lock,),
        )

    def load(self, rate: int) -> Child:
        """Say how to place `rate` orders a second, for as long as the system runs."""
        options = ("--data", str(self.folder), "--rate", str(rate), "--duration", "0", "--quiet")
        return Child(
            name=LOAD,
            argv=(*CLI, LOAD, *options),
            env=self._environ,
            log=self.log_of(LOAD),
            ready=lambda: True,
        )

    def forget_run(self) -> None:
        """Remove run.json: the system is not ready, or not any more."""
        (self.folder / RUN_FILE).unlink(missing_ok=True)

    def write_run(self, parts: Mapping[str, Part]) -> None:
        """Write run.json: where each part is, and the newest process of each."""
        postgres: dict[str, object] = {
            "url": self.postgres.url,
            "pid": parts[POSTGRES].pid,
        }
        if self.postgres.placement.outside:
            postgres["data"] = str(self.postgres.placement.data)
        run = {
            "services": {
                name: {"url": self.url_of(name), "pids": [parts[name].pid]} for name in SERVICES
            },
            "nats": {
                "urls": [self.broker.url],
                "pids": [parts[BROKER].pid],
                "stores": [str(self.broker.store)],
                "monitor_urls": [self.broker.monitor_url],
            },
            "postgres": postgres,
            "sandbox": {
                "url": self.url_of(SANDBOX),
                "pid": parts[SANDBOX].pid,
                "smtp": f"{HOST}:{self._kept['smtp']}",
            },
        }
        write_file(self.folder / RUN_FILE, json.dumps(run, indent=1) + "\n")
