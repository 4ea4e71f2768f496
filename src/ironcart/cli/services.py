"""The five services, by name."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ironcart.toolkit.lifecycle import Service

NAMES: Final = ("orders", "inventory", "payments", "notifications", "audit")


def find(name: str) -> "Service":
    """Load one service; only its own code is imported, so a process carries no other."""
    service: Service = import_module(f"ironcart.services.{name}.app").SERVICE
    return service


def every() -> "Mapping[str, Service]":
    """Load all of them."""
    return {name: find(name) for name in NAMES}
