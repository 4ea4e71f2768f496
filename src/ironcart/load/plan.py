"""What a load run is asked to do, and where the system is that it does it to."""

import json
from dataclasses import dataclass
from pathlib import Path


class InvalidPlanError(Exception):
    """The run cannot start; the message is one line that says what to change."""


@dataclass(frozen=True, slots=True)
class Target:
    """Base addresses without a trailing slash; no inventory means that stock is not topped up.

    Keys are empty where none is needed: a storefront's for orders, an operator's for stock. `ca` is
    the file of the issuer to trust, where it is none that this machine knows.
    """

    orders_url: str
    inventory_url: str | None
    orders_key: str = ""
    inventory_key: str = ""
    ca: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. `rate` 0 is a closed loop; `duration_s` 0 and `orders` 0 mean until stopped.

    `orders` wins over `duration_s`. `settle_s` bounds the wait for the last order's end.
    """

    target: Target
    log_folder: Path
    rate: float = 0
    duration_s: float = 0
    orders: int = 0
    connections: int = 64
    customers: int = 1_000
    skus: int = 50
    settle_s: float = 60
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("rate", "duration_s", "orders", "settle_s"):
            if getattr(self, name) < 0:
                raise InvalidPlanError(f"{name} cannot be negative")
        for name in ("connections", "customers", "skus"):
            if getattr(self, name) < 1:
                raise InvalidPlanError(f"{name} must be at least 1")
        if not self.rate and not self.orders and not self.duration_s:
            raise InvalidPlanError("say how much: --rate N, --orders N or both")


def issuer_of(data: Path) -> str:
    """Return the issuer's file that DIR/run.json names; "" when there is none."""
    try:
        return str(json.loads((data / "run.json").read_bytes())["tls"]["ca"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def find_target(
    data: Path, url: str | None, inventory_url: str | None, key: str = "", *, ca: str = ""
) -> Target:
    """Return the addresses given, or those in DIR/run.json; raises `InvalidPlanError`.

    `key` is for addresses that are given, and wins over those in run.json; `ca` is for the former.
    """
    if url is not None:
        inventory = inventory_url.rstrip("/") if inventory_url else None
        return Target(url.rstrip("/"), inventory, key, key, ca)
    path = data / "run.json"
    try:
        running = json.loads(path.read_bytes())
        services, keys = running["services"], running.get("api_keys", {})
        orders, inventory = services["orders"]["url"], services["inventory"]["url"]
        return Target(
            str(orders).rstrip("/"),
            str(inventory_url or inventory).rstrip("/"),
            key or keys.get("storefront", ""),
            key or keys.get("operator", ""),
            running.get("tls", {}).get("ca", ""),
        )
    except FileNotFoundError:
        raise InvalidPlanError(
            f"{path} does not exist: start the system with `ironcart up --data {data}`, "
            "name its folder with --data, or its address with --url"
        ) from None
    except OSError as error:
        raise InvalidPlanError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidPlanError(f"{path} is not a run.json: {error!r}") from None
