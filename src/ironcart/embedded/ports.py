"""Ports on 127.0.0.1: the seven a person chooses with --port, and those kept in the data folder."""

import json
import random
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from ironcart.embedded.folder import write_file
from ironcart.embedded.process import CannotStart

HOST = "127.0.0.1"
SERVICES = ("orders", "inventory", "payments", "notifications", "audit")
HTTP_ORDER = (*SERVICES, "console", "sandbox")
KEPT = ("postgres", "smtp")
PORTS_FILE = "ports.json"

# Below the ranges outgoing connections take theirs from (Linux 32768, macOS 49152): a client
# that keeps trying a server that is away could otherwise connect to itself and sit on its port.
FIRST_FREE = 20_000
LAST_FREE = 31_999
FREE_ATTEMPTS_MAX = 1_000
LAST_PORT = 65_535


def is_free(port: int) -> bool:
    """Whether nobody listens on `port` of the loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_port(avoid: Iterable[int] = ()) -> int:
    """Return a port nobody listens on, none of `avoid`."""
    taken = set(avoid)
    for _ in range(FREE_ATTEMPTS_MAX):
        port = random.randint(FIRST_FREE, LAST_FREE)  # noqa: S311 - no secret
        if port not in taken and is_free(port):
            return port
    raise CannotStart(f"no port between {FIRST_FREE} and {LAST_FREE} is free on {HOST}")


def http_ports(first: int) -> dict[str, int]:
    """Return the port of each HTTP part, counted from `first`.

    Raises `CannotStart` when one is in use or does not exist. The console's is only reserved.
    """
    if not 1 <= first <= LAST_PORT - len(HTTP_ORDER) + 1:
        last = LAST_PORT - len(HTTP_ORDER) + 1
        raise CannotStart(f"--port {first} is out of range: choose one from 1 to {last}")
    ports = {name: first + offset for offset, name in enumerate(HTTP_ORDER)}
    for name, port in ports.items():
        if name != "console" and not is_free(port):
            raise CannotStart(
                f"port {port} ({name}) is in use or not allowed: "
                f"choose {len(HTTP_ORDER)} other ports in a row with --port"
            )
    return ports


def kept_ports(folder: Path, avoid: Iterable[int], names: Iterable[str]) -> Mapping[str, int]:
    """Return the ports kept in `folder`, choosing those that are missing or taken meanwhile."""
    path = folder / PORTS_FILE
    try:
        kept = {name: int(port) for name, port in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        kept = {}
    except (ValueError, TypeError, AttributeError):
        raise CannotStart(f"{path} is not a JSON object of ports: delete it") from None
    taken = set(avoid)
    ports: dict[str, int] = {}
    for name in names:
        port = kept.get(name, 0)
        if not 0 < port <= LAST_PORT or port in taken or not is_free(port):
            port = free_port(avoid=taken)
        ports[name] = port
        taken.add(port)
    if ports != kept:
        write_file(path, json.dumps(ports, indent=1) + "\n")
    return ports
