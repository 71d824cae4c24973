"""The files of a farm: the one asked for, and what it includes, each as its tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs

from qmpkit.errors import SpecInvalid
from qmpkit.spec.data import parse_toml, schema_fault
from qmpkit.spec.farm_faults import Faults, Layer, table_at
from qmpkit.spec.text_files import read_text

__all__ = ["FarmFile", "read_files"]

_TABLES = ("variables", "defaults", "networks", "machines")
_KEYS = ("schema", "include", *_TABLES)
_PROFILES = {"extends", "name"}  # of one machine: all else that it says is unknown here, too
_FILE_LIMIT = 100


@attrs.frozen
class FarmFile:
    """One file: where it is, its name in faults ("" for the first), its four tables."""

    path: Path
    label: str
    tables: dict[str, dict[str, Any]]

    def layer(self, *prefix: str) -> Layer:
        """The table at *prefix* as a layer."""
        table: Any = self.tables
        for step in prefix:
            table = table[step]
        return Layer(self.label, prefix, table)


class _Reader:
    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.files: list[FarmFile] = []
        self._seen: set[str] = set()

    def read(self, path: Path, data: dict[str, Any], label: str, chain: tuple[str, ...]) -> None:
        """The file and, before it, what it includes: what is read later wins."""
        real = os.path.realpath(path)
        self._seen.add(real)
        at = Layer(label, (), data)
        if fault := schema_fault(data):
            self.faults.add_all([fault], at.where)
        if fault and isinstance(data.get("schema"), int):
            return  # a newer file may mean something else by everything that follows
        if "machines" not in data and _PROFILES & data.keys():
            hint = f'[machines.NAME] with profile = "./{path.name}" in one'
            self.faults.add(label, "this is a profile, not a farm's file", hint)
            return
        for key in sorted(data.keys() - set(_KEYS)):
            self.faults.add_unknown(at.where((key,)), key, _KEYS)
        for number, name in enumerate(self._names(at)):
            self._include(path.parent, name, at.where(("include", number)), (*chain, real))
        tables = {
            key: table_at(data.get(key, {}), at.where((key,)), self.faults) for key in _TABLES
        }
        self.files.append(FarmFile(path, label, tables))

    def _names(self, at: Layer) -> list[object]:
        names = at.table.get("include", [])
        if isinstance(names, list):
            return names
        self.faults.add(at.where(("include",)), "must be a list of files")
        return []

    def _include(self, folder: Path, name: object, where: str, chain: tuple[str, ...]) -> None:
        if not isinstance(name, str) or not name or "\0" in name:
            self.faults.add(where, f"must be a file's name, not {name!r}")
        elif name.startswith(("/", "~")) or "${" in name:
            # What a farm consists of is seen in its files, and the same on every host.
            message = f"{name!r} must be relative, and the same everywhere"
            self.faults.add(where, message, "it counts from this file")
        elif (real := os.path.realpath(folder / name)) in chain:
            self.faults.add(where, f"{name!r} includes itself")
        elif len(self._seen) >= _FILE_LIMIT:
            self.faults.add(where, f"these are more than {_FILE_LIMIT} files")
        elif real not in self._seen:
            path = Path(os.path.normpath(folder / name))
            try:
                data = parse_toml(read_text(path), "")
            except SpecInvalid as error:
                self.faults.add(where, f"{path}: {error.faults[0].message}")
            else:
                self.read(path, data, str(path), chain)


def read_files(path: Path, faults: Faults) -> list[FarmFile]:
    """The file and all it includes, the included first; SpecInvalid when it cannot be read."""
    reader = _Reader(faults)
    try:
        data = parse_toml(read_text(path), str(path))
    except SpecInvalid as error:
        raise SpecInvalid(error.faults, str(path)) from None
    reader.read(path, data, "", ())
    return reader.files
