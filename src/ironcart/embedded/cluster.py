"""The broker's nodes: one by itself, or a cluster that survives the loss of a minority of them."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ironcart.embedded.folder import write_file
from ironcart.embedded.nats_server import Access, NatsServer, Routes
from ironcart.embedded.process import CannotStart

SIZES = (1, 3, 5)
# More copies than three cost every write and save no order that three would lose.
REPLICAS_MAX = 3
SIZE_FILE = "nodes"
ASK_TIMEOUT_S = 2.0
POLL_S = 0.1


def cluster_size(folder: Path, wanted: int | None) -> int:
    """Return how many nodes the stores in `folder` were made for, else `wanted`, else one.

    Raises `CannotStart` for a number that is not possible, or not what the folder has.
    """
    if wanted is not None and wanted not in SIZES:
        raise CannotStart(f"--nats-nodes {wanted}: choose {', '.join(map(str, SIZES))}")
    kept = _kept_size(folder)
    if kept is not None and wanted not in (None, kept):
        raise CannotStart(
            f"{folder.parent} was made with --nats-nodes {kept}, and its streams cannot move to "
            f"{wanted}: start it with {kept}, or choose another folder with --data"
        )
    return kept or wanted or 1


def _kept_size(folder: Path) -> int | None:
    path = folder / SIZE_FILE
    try:
        size = int(path.read_text())
    except FileNotFoundError:
        # Before there were clusters, one node was all there could be.
        return 1 if (folder / node_name(1)).exists() else None
    except ValueError:
        size = 0
    if size not in SIZES:
        raise CannotStart(f"{path} does not say how many nodes the broker has: put it back")
    return size


def node_name(number: int) -> str:
    """Return the name of a node, counted from 1."""
    return f"broker-{number}"


def port_names(size: int) -> list[str]:
    """Return the names of the ports that `size` nodes need, as they are kept in the folder."""
    names = []
    for number in range(1, size + 1):
        names += [_client(number), _monitor(number)]
        names += [_route(number)] if size > 1 else []
    return names


def _client(number: int) -> str:
    return "broker" if number == 1 else f"broker_{number}"


def _monitor(number: int) -> str:
    return f"{_client(number)}_monitor"


def _route(number: int) -> str:
    return f"{_client(number)}_route"


def nodes(
    folder: Path,
    size: int,
    ports: Mapping[str, int],
    *,
    access: Access | None = None,
    tls: Path | None = None,
    logs: Path,
    inherit: tuple[int, ...],
) -> tuple[NatsServer, ...]:
    """Return the `size` nodes with stores in `folder`, and remember there how many they are."""
    numbers = range(1, size + 1)
    routes = tuple(ports[_route(number)] for number in numbers) if size > 1 else ()
    folder.mkdir(parents=True, exist_ok=True)
    if _kept_size(folder) is None:
        write_file(folder / SIZE_FILE, f"{size}\n")
    return tuple(
        NatsServer(
            folder,
            port=ports[_client(number)],
            monitor_port=ports[_monitor(number)],
            name=node_name(number),
            routes=Routes(ports[_route(number)], routes) if routes else None,
            access=access,
            tls=tls,
            log=logs / f"{node_name(number)}.log",
            inherit=inherit,
        )
        for number in numbers
    )


async def elected(brokers: tuple[NatsServer, ...], timeout_s: float) -> None:
    """Return when the nodes have a leader that sees all of them; one node has nobody to elect.

    Raises `CannotStart` after `timeout_s`. Before, streams with copies cannot be placed.
    """
    deadline = time.monotonic() + timeout_s
    while len(brokers) > 1 and not await asyncio.to_thread(_is_elected, brokers):
        if time.monotonic() > deadline:
            raise CannotStart(f"the broker's {len(brokers)} nodes have no leader: see their logs")
        await asyncio.sleep(POLL_S)


def _is_elected(brokers: tuple[NatsServer, ...]) -> bool:
    return any(_leads_all(_ask(f"{node.monitor_url}/jsz"), len(brokers)) for node in brokers)


def _leads_all(said: dict[str, Any], size: int) -> bool:
    # Only the leader says how its followers are.
    followers = said.get("meta_cluster", {}).get("replicas") or []
    return len(followers) == size - 1 and all(
        follower.get("current") and not follower.get("offline") for follower in followers
    )


def _ask(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=ASK_TIMEOUT_S) as answer:  # noqa: S310 - our own address
            found: dict[str, Any] = json.load(answer)
            return found
    except (OSError, ValueError, urllib.error.URLError):
        return {}
