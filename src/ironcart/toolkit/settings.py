"""Settings: read once from the environment into frozen structs, every fault reported together.

A field `drain_timeout_s` of a service `orders` is read from `IRONCART_ORDERS_DRAIN_TIMEOUT_S`, else
from `IRONCART_DRAIN_TIMEOUT_S`, else it has its default. Values are never printed back: they may
be secrets. This is the only module that reads the environment.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.structs import fields

from ironcart.toolkit.outcomes import InvalidSettings

PREFIX = "IRONCART_"

S = TypeVar("S", bound=msgspec.Struct)


def environment() -> dict[str, str]:
    """Return a copy of this process's environment."""
    return dict(os.environ)


def load(kind: type[S], environ: Mapping[str, str], scope: str = "") -> S:
    """Read `kind` from `environ`; `scope` is the service's name, whose own variables win.

    Raises `InvalidSettings` naming every variable that is missing or wrong.
    """
    found: dict[str, Any] = {}
    faults: list[str] = []
    for field in fields(kind):
        names = list(_names(field.name, scope))
        name = next((name for name in names if environ.get(name, "") != ""), None)
        if name is None:
            if field.required:
                faults.append(f"{names[-1]} is not set")
            continue
        try:
            found[field.name] = msgspec.convert(environ[name], field.type, strict=False)
        except msgspec.ValidationError as error:
            faults.append(f"{name}: {_without_value(str(error))}")
    if faults:
        raise InvalidSettings("settings are wrong: " + "; ".join(faults))
    try:
        # A constructor does not check constraints across fields, __post_init__ does.
        return kind(**found)
    except ValueError as error:
        raise InvalidSettings(f"settings are wrong: {error}") from error


def load_all(
    kinds: Sequence[type[msgspec.Struct]], environ: Mapping[str, str], scope: str = ""
) -> list[Any]:
    """Read several structs at once; raises `InvalidSettings` with the faults of all of them."""
    found: list[Any] = []
    faults: list[str] = []
    for kind in kinds:
        try:
            found.append(load(kind, environ, scope))
        except InvalidSettings as error:
            faults += error.args
    if faults:
        raise InvalidSettings("; ".join(dict.fromkeys(faults)))
    return found


def _without_value(text: str) -> str:
    return "not one of the allowed values" if text.startswith("Invalid enum value") else text


def _names(field: str, scope: str) -> Iterator[str]:
    if scope:
        yield f"{PREFIX}{scope}_{field}".upper()
    yield f"{PREFIX}{field}".upper()
