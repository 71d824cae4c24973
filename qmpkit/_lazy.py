"""Public names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module

__all__ = ["lazily"]


def lazily(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], object], list[str]]:
    """A package's `__getattr__`, and the names that it finds; *modules*: which one has which."""
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def find(name: str) -> object:
        try:
            home = homes[name]
        except KeyError:
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        value: object = getattr(import_module(home), name)
        setattr(sys.modules[package], name, value)
        return value

    return find, sorted(homes)
