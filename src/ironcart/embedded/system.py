"""The whole system as children of one supervisor, and run.json, which says where each part is."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ironcart.embedded.callers import KEYS_FILE, caller_keys
from ironcart.embedded.certificates import issue
from ironcart.embedded.cluster import REPLICAS_MAX, cluster_size, nodes, port_names
from ironcart.embedded.folder import (
    AUDIT,
    CHECKPOINTS,
    master_key,
    passwords,
    signing_key,
    write_file,
)
from ironcart.embedded.nats_server import ROUTE, Access
from ironcart.embedded.placement import is_placed
from ironcart.embedded.ports import HOST, KEPT, SERVICES, http_ports, kept_ports
from ironcart.embedded.postgres import Postgres
from ironcart.embedded.process import Child, http_ready, ports_ready
from ironcart.embedded.supervisor import Part
from ironcart.toolkit.permissions import OPERATOR, PROVISION, Permissions
from ironcart.toolkit.tables import role_of
from ironcart.toolkit.tls import CA

POSTGRES = "postgres"
SANDBOX = "sandbox"
LOAD = "load"
RUN_FILE = "run.json"
USERS_FILE = "nats.users"
TLS_FOLDER = "tls"
# Whose certificate the broker's nodes show.
BROKER = "broker"
ROLES_FILE = "postgres.roles"
DRAIN_TIMEOUT_S = "30"
CLI = (sys.executable, "-m", "ironcart.cli")
ROLE_PASSWORD = "ROLE_PASSWORD"  # noqa: S105 - a setting's name
# What of one service's own nobody but us says.
OURS = ("PORT", ROLE_PASSWORD)
# Where a person may send one service, and only that one: through a proxy, say.
ADDRESSES = (
    *("NATS_URL", "NATS_MONITOR_URL", "DATABASE_URL", "VAULT_DATABASE_URL"),
    *("STRIPE_API_KEY", "STRIPE_API_BASE", "SMTP_URL"),
)


class System:
    """What runs for the data folder `folder`; `lock` is its open lock, which every part holds.

    `nats_nodes` is the number of the broker's nodes; None leaves it as the folder has it. `users`
    is who may do what at the broker; without any, all may do everything. With `tls` services are
    reached by HTTPS, and the broker only with a certificate. Raises `CannotStart` when a port is
    taken, the folder is damaged or has another number of nodes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_port: int,
        environ: Mapping[str, str],
        lock: int,
        nats_nodes: int | None = None,
        users: Mapping[str, Permissions] | None = None,
        auth: bool = False,
        tls: bool = False,
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
        self._api_keys = caller_keys(self.folder) if auth else {}
        self._master_key = master_key(
            self.folder,
            may_create=not is_placed(self.folder),
            said=environ.get("IRONCART_MASTER_KEY"),
        )
        self._signing_key = signing_key(self.folder)
        self._role_passwords = passwords(self.folder / ROLES_FILE, SERVICES)
        logs = self.folder / "logs"
        self.tls = self.folder / TLS_FOLDER if tls else None
        if self.tls is not None:
            issue(self.tls, (*SERVICES, BROKER, OPERATOR))
        self._access: Access | None = None
        if users:
            told = passwords(self.folder / USERS_FILE, (*users, ROUTE))
            self._access = Access(users, told)
        self.brokers = nodes(
            stores,
            size,
            self._kept,
            access=self._access,
            tls=self.tls and self.tls / BROKER,
            logs=logs,
            inherit=(lock,),
        )
        self.postgres = Postgres(
            self.folder,
            port=self._kept["postgres"],
            log=self.log_of(POSTGRES),
            inherit=(lock,),
        )

    @property
    def ca(self) -> Path | None:
        """The issuer of the services' certificates, where there is TLS."""
        return self.tls and self.tls / CA

    def log_of(self, name: str) -> Path:
        """Return the file that gets the output of a part."""
        return self.folder / "logs" / f"{name}.log"

    def url_of(self, name: str) -> str:
        """Return the address of a service or of the sandbox."""
        scheme = "https" if self.tls and name in SERVICES else "http"
        return f"{scheme}://{HOST}:{self.ports[name]}"

    def environ(self) -> dict[str, str]:
        """Return what provisioning is told, and services but for what is one's own or not theirs.

        The rest of our environment is passed on, save what is meant for one service and ours to
        say: what we run is provisioned, wherever that service is sent.
        """
        own = {
            "NATS_URL": self._broker_for(PROVISION),
            "NATS_MONITOR_URL": ",".join(node.monitor_url for node in self.brokers),
            "DATABASE_URL": self._database(self.postgres.url),
            "VAULT_DATABASE_URL": self._database(self.postgres.url),
            "MASTER_KEY": self._master_key,
            "STRIPE_API_KEY": "sk_test_sandbox",
            "STRIPE_API_BASE": self.url_of(SANDBOX),
            "STRIPE_WEBHOOK_SECRETS": "whsec_sandbox",
            "SMTP_URL": f"smtp://{HOST}:{self._kept['smtp']}",
            "TLS_DIR": self._certificates_of(OPERATOR),
            "AUTH": "on" if self._api_keys else "off",
            "API_KEYS_FILE": str(self.folder / KEYS_FILE) if self._api_keys else "",
            "HOST": HOST,
        }
        hidden = {key for name in SERVICES for key in _keys_of(name, {*own, *ADDRESSES, *OURS})}
        passed = {key: value for key, value in self._environ.items() if key not in hidden}
        own |= {f"{name.upper()}_{ROLE_PASSWORD}": self._role_passwords[name] for name in SERVICES}
        defaults = {
            "IRONCART_LOG_LEVEL": "info",
            "IRONCART_WEBHOOKS_ALLOW_PRIVATE": "true",
            "IRONCART_DRAIN_TIMEOUT_S": DRAIN_TIMEOUT_S,
            "IRONCART_AUDIT_SIGNING_KEY_FILE": str(self._signing_key),
            "IRONCART_AUDIT_CHECKPOINTS": str(self.folder / AUDIT / CHECKPOINTS),
            "IRONCART_STREAM_REPLICAS": str(min(len(self.brokers), REPLICAS_MAX)),
        }
        return defaults | passed | {f"IRONCART_{key}": value for key, value in own.items()}

    def services(self) -> list[Child]:
        """Say how to run the five services; an address set for one of them wins over ours."""
        shared = {k: v for k, v in self.environ().items() if not k.endswith(ROLE_PASSWORD)}
        return [
            Child(
                name=name,
                argv=(*CLI, "run", name),
                env=shared | self._own(name) | self._elsewhere(name),
                log=self.log_of(name),
                ready=http_ready(f"{self.url_of(name)}/ready", self.ca),
                inherit=(self._lock,),
            )
            for name in SERVICES
        ]

    def _own(self, service: str) -> dict[str, str]:
        """What one service is told besides: it comes to database and broker as itself alone."""
        url = self._database(self.postgres.url_for(role_of(service), self._role_passwords[service]))
        return {
            "IRONCART_PORT": str(self.ports[service]),
            "IRONCART_DATABASE_URL": url,
            "IRONCART_VAULT_DATABASE_URL": url,
            "IRONCART_NATS_URL": self._broker_for(service),
            "IRONCART_TLS_DIR": self._certificates_of(service),
        }

    def _elsewhere(self, service: str) -> dict[str, str]:
        """Where a person sends one service; at our own end it still has to say who it is."""
        own = _keys_of(service, ADDRESSES)
        found = {key: value for key, value in self._environ.items() if key in own}
        (key,) = _keys_of(service, ["NATS_URL"])
        if self._access is not None and key in found and "@" not in found[key]:
            urls = found[key].split(",")
            found[key] = ",".join(self._access.sign(url, service) for url in urls)
        signed = f"://{role_of(service)}:{self._role_passwords[service]}@"
        for key in _keys_of(service, ["DATABASE_URL", "VAULT_DATABASE_URL"]) & found.keys():
            if "@" not in found[key]:
                found[key] = found[key].replace("://", signed, 1)
        return found

    def _certificates_of(self, name: str) -> str:
        return str(self.tls / name) if self.tls else ""

    def _database(self, url: str) -> str:
        # The server of the wheel is built without TLS, and is on this very machine.
        return f"{url}?sslmode=disable" if self.tls else url

    def _broker_for(self, user: str) -> str:
        return ",".join(node.url_for(user) for node in self.brokers)

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
            "url": self._database(self.postgres.url),
            "pid": parts[POSTGRES].pid,
        }
        if self.postgres.placement.outside:
            postgres["data"] = str(self.postgres.placement.data)
        run: dict[str, object] = {
            "services": {
                name: {"url": self.url_of(name), "pids": [parts[name].pid]} for name in SERVICES
            },
            "nats": {
                "urls": [node.url_for(OPERATOR) for node in self.brokers],
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
        if self._api_keys:
            run["api_keys"] = self._api_keys
        if self.tls is not None:
            run["tls"] = {"ca": str(self.ca), "dir": self._certificates_of(OPERATOR)}
        write_file(self.folder / RUN_FILE, json.dumps(run, indent=1) + "\n")


def _keys_of(service: str, names: Iterable[str]) -> set[str]:
    return {f"IRONCART_{service.upper()}_{name}" for name in names}
