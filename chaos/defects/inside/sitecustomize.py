"""Runs at the start of every Python process of a system that is to be broken: the defect that
`CHAOS_DEFECT` names is put into the modules it concerns, the moment they are loaded."""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import sabotage

NAME = os.environ.get("CHAOS_DEFECT", "")
PLACES: dict[str, Callable[[Any], None]] = sabotage.DEFECTS.get(NAME, {})


class _Loader(importlib.abc.Loader):
    def __init__(self, real: Any, break_it: Callable[[Any], None]) -> None:
        self._real, self._break = real, break_it

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Leave it to the real loader."""
        created: ModuleType | None = self._real.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        """Load the module, then break it; whoever imports from it gets what is broken."""
        self._real.exec_module(module)
        self._break(module)
        sabotage.mark(f"{NAME} in {module.__name__}")


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find what is to be broken the usual way, and wrap its loader."""
        if fullname not in PLACES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, PLACES[fullname])
        return spec


if PLACES:
    sys.meta_path.insert(0, _Finder())
