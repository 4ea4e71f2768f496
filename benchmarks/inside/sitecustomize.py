"""Runs at the start of every Python process of a system that is measured with something changed:
`BENCH_PATCHES` holds `module:NAME=value` or `module:NAME=name of a function in swaps`."""

import ast
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import swaps

PATCHES: dict[str, list[tuple[str, str]]] = {}
for patch in filter(None, os.environ.get("BENCH_PATCHES", "").split(";")):
    module_name, _, setting = patch.partition(":")
    attribute, _, text = setting.partition("=")
    PATCHES.setdefault(module_name, []).append((attribute, text))


class _Loader(importlib.abc.Loader):
    def __init__(self, real: Any) -> None:
        self._real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Leave it to the real loader."""
        created: ModuleType | None = self._real.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        """Load the module, then change it; a name that it lacks is a mistake that must be seen."""
        self._real.exec_module(module)
        for attribute, text in PATCHES[module.__name__]:
            holder: Any = module
            *path, name = attribute.split(".")
            for each in path:
                holder = getattr(holder, each)
            before = getattr(holder, name)
            swap = getattr(swaps, text, None)
            setattr(holder, name, ast.literal_eval(text) if swap is None else swap(before))


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find what is to be changed the usual way, and wrap its loader."""
        if fullname not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


if PATCHES:
    sys.meta_path.insert(0, _Finder())
