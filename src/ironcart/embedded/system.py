"""The whole system as children of one supervisor, and run.json, which says where each part is."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ironcart.embedded.cluster import REPLICAS_MAX, cluster_size, nodes, port_names
from ironcart.embedded.folder import master_key, write_file
from ironcart.embedded.placement import is_placed
from ironcart.embedded.ports import HOST, KEPT, SERVICES, http_ports, kept_ports
from ironcart.embedded.postgres import Postgres
from ironcart.embedded.process import Child, http_ready, ports_ready
from ironcart.embedded.supervisor import Part

POSTGRES = "postgres"
SANDBOX = "sandbox"
LOAD = "load"
RUN_FILE = "run.json"
DRAIN_TIMEOUT_S = "30"
CLI = (sys.executable, "-m", "ironcart.cli")
# Where a person may send one service, and only that one: through a proxy, say.
ADDRESSES = (
    *("NATS_URL", "NATS_MONITOR_URL", "DATABASE_URL", "VAULT_DATABASE_URL"),
    *("STRIPE_API_KEY", "STRIPE_API_BASE", "SMTP_URL"),
)


class System:
    """What runs for the data folder `folder`; `lock` is its open lock, which every part holds.

    `nats_nodes` is the number of the broker's nodes; None leaves it as the folder has it. Raises
    `CannotStart` when a port is taken, the folder is damaged or has another number of nodes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_port: int,
        environ: Mapping[str, str],
        lock: int,
        nats_nodes: int | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self._environ = environ
        self._lock = lock
        self.forget_run()
        self.ports = http_ports(first_port)
        stores = self.folder / "nats"
        size = cluster_size(stores, nats_nodes)
        kept = (*port_names(size), *KEPT)
        self._kept = kept_ports(self.folder, avoid=self.ports.values(), names=kept)
        self._master_key = master_key(self.folder, may_create=not is_placed(self.folder))
        logs = self.folder / "logs"
        self.brokers = nodes(stores, size, self._kept, logs=logs, inherit=(lock,))
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
        """Return what provisioning is told, and the services but for what is one service's own.

        The rest of our environment is passed on, save what is meant for one service and ours to
        say: what we run is provisioned, wherever that service is sent.
        """
        own = {
            "NATS_URL": ",".join(node.url for node in self.brokers),
            "NATS_MONITOR_URL": ",".join(node.monitor_url for node in self.brokers),
            "DATABASE_URL": self.postgres.url,
            "VAULT_DATABASE_URL": self.postgres.url,
            "MASTER_KEY": self._master_key,
            "STRIPE_API_KEY": "sk_test_sandbox",
            "STRIPE_API_BASE": self.url_of(SANDBOX),
            "STRIPE_WEBHOOK_SECRETS": "whsec_sandbox",
            "SMTP_URL": f"smtp://{HOST}:{self._kept['smtp']}",
            "AUTH": "off",
            "HOST": HOST,
        }
        hidden = {key for name in SERVICES for key in _keys_of(name, {*own, *ADDRESSES, "PORT"})}
        passed = {key: value for key, value in self._environ.items() if key not in hidden}
        defaults = {
            "IRONCART_LOG_LEVEL": "info",
            "IRONCART_WEBHOOKS_ALLOW_PRIVATE": "true",
            "IRONCART_DRAIN_TIMEOUT_S": DRAIN_TIMEOUT_S,
            "IRONCART_STREAM_REPLICAS": str(min(len(self.brokers), REPLICAS_MAX)),
        }
        return defaults | passed | {f"IRONCART_{key}": value for key, value in own.items()}

    def services(self) -> list[Child]:
        """Say how to run the five services; an address set for one of them wins over ours."""
        elsewhere = {key for name in SERVICES for key in _keys_of(name, ADDRESSES)}
        environ = self.environ() | {
            key: value for key, value in self._environ.items() if key in elsewhere
        }
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
                "urls": [node.url for node in self.brokers],
                "pids": [parts[node.name].pid for node in self.brokers],
                "stores": [str(node.store) for node in self.brokers],
                "monitor_urls": [node.monitor_url for node in self.brokers],
            },
            "postgres": postgres,
            "sandbox": {
                "url": self.url_of(SANDBOX),
                "pid": parts[SANDBOX].pid,
                "smtp": f"{HOST}:{self._kept['smtp']}",
            },
        }
        write_file(self.folder / RUN_FILE, json.dumps(run, indent=1) + "\n")


def _keys_of(service: str, names: Iterable[str]) -> set[str]:
    return {f"IRONCART_{service.upper()}_{name}" for name in names}
