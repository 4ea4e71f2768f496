"""What has to be there once before a service begins; what is missing shows in `/ready`."""

import urllib.parse
from importlib.resources import files
from typing import Any

import aiohttp
import structlog

from ironcart.toolkit.broker import Broker, compare
from ironcart.toolkit.database import Database
from ironcart.toolkit.lifecycle.service import Service, Settings
from ironcart.toolkit.outcomes import Refused, Unavailable

MONITOR_TIMEOUT_S = 2.0
MONITOR_PORT = 8222


async def check_database(database: Database, service: Service) -> None:
    """Raise `Unavailable` while the database is away or its schema is behind this code."""
    await database.connect()
    row = await database.fetchrow("SELECT to_regclass('schema_migrations') AS there")
    applied: set[str] = set()
    if row is not None and row["there"] is not None:
        rows = await database.fetch("SELECT version FROM schema_migrations")
        applied = {row["version"] for row in rows}
    if behind := shipped_migrations(service) - applied:
        first = min(behind)
        raise Unavailable(f"the schema lacks migration {first}: run `ironcart provision`")


async def check_sync(settings: Settings) -> None:
    """Refuse a broker that acknowledges before it syncs: power loss would lose orders.

    Of a cluster, those nodes are judged that answer, and one has to.
    """
    monitor = settings.nats_monitor_url
    if not monitor:
        host = urllib.parse.urlsplit(settings.nats_url.split(",")[0]).hostname
        monitor = f"http://{host}:{MONITOR_PORT}"
    said = [each for url in monitor.split(",") if (each := await _varz(url)) is not None]
    if not said:
        if settings.allow_unsafe_broker:
            structlog.get_logger().warning("Cannot tell whether the broker syncs always")
            return
        raise Unavailable(f"cannot ask {monitor}/varz")
    configs = [each.get("jetstream", {}).get("config", {}) for each in said]
    if all(config.get("sync_always") is True for config in configs):
        return
    complaint = "the broker does not sync before it acknowledges: set `sync_interval: always`"
    if not settings.allow_unsafe_broker:
        raise Refused(f"{complaint}, or run with --allow-unsafe-broker and lose orders")
    structlog.get_logger().warning("UNSAFE BROKER", error=complaint)


async def _varz(monitor_url: str) -> dict[str, Any] | None:
    try:
        timeout = aiohttp.ClientTimeout(total=MONITOR_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{monitor_url}/varz", allow_redirects=False) as answer,
        ):
            found: dict[str, Any] = await answer.json()
            return found
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None


async def check_consumers(broker: Broker, service: Service) -> None:
    """Raise `Unavailable` while consumers are missing or not as declared."""
    if phrases := await compare(broker, service.durables):
        raise Unavailable("; ".join(phrases) + ": run `ironcart provision`")


def shipped_migrations(service: Service) -> set[str]:
    """The versions of the migrations that this code was written for, its own and the toolkit's."""
    package = service.build.__module__.rpartition(".")[0]
    folders = [files("ironcart.toolkit") / "migrations" / "history"]
    if package:
        folders.append(files(package) / "migrations")
    return {
        file.name.partition("_")[0]
        for folder in folders
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    }
