"""A farm's files as one table a machine: variables, defaults and profiles put in.

Each table comes with its layers, so that a fault found in the whole is told where it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

from qmpkit.errors import SpecInvalid
from qmpkit.spec.convert import kind_of, unfolded
from qmpkit.spec.farm_faults import Faults, Layer, Steps, origin, table_at
from qmpkit.spec.farm_files import FarmFile
from qmpkit.spec.farm_text import braces_doubled, pattern_problem, resolved, substituted
from qmpkit.spec.paths import PATHS, map_fields
from qmpkit.spec.profile import absolute, is_path, merged, profile_table
from qmpkit.spec.text_files import read_text

__all__ = ["Merged", "merge"]

_OWN_NAME = ("name", "count")


@attrs.frozen
class Merged:
    """A machine's or a network's whole table, and the layers it is made of, the strongest first."""

    table: dict[str, Any]
    layers: Sequence[Layer]
    complete: bool = True
    """False when the profile cannot be read: what else is missing would be its fault."""

    def where(self, steps: Steps) -> str:
        """The path of *steps* in the file they were written in."""
        return origin(self.layers, steps)


def merge(files: Sequence[FarmFile], faults: Faults) -> tuple[dict[str, Merged], dict[str, Merged]]:
    """Networks and machines by name, in the order of the files."""
    files = _filled(files, faults)
    defaults = [_defaults(file, faults) for file in reversed(files)]
    profiles = _Profiles(faults)
    machines = {
        name: _whole(_prepared(layer, folder, faults), defaults, profiles)
        for name, layer, folder in _named(files, "machines", faults)
    }
    networks = {
        name: Merged(dict(layer.table), [layer])
        for name, layer, _ in _named(files, "networks", faults)
    }
    return networks, machines


def _defaults(file: FarmFile, faults: Faults) -> Layer:
    layer = _prepared(file.layer("defaults"), file.path.parent, faults)
    for key in filter(layer.table.__contains__, _OWN_NAME):
        faults.add(layer.where((key,)), "is each machine's own", f"[machines.NAME] {key} = …")
    table = {key: value for key, value in layer.table.items() if key not in _OWN_NAME}
    return attrs.evolve(layer, table=table)


def _filled(files: Sequence[FarmFile], faults: Faults) -> list[FarmFile]:
    """The files with `${variables}` replaced, which those that include others may set anew."""
    table: dict[str, Any] = {}
    where: dict[str, str] = {}
    for file in files:
        at = file.layer("variables")
        table |= at.table
        where |= {name: at.where((name,)) for name in at.table}
    values = resolved(table, where, faults)
    return [
        attrs.evolve(
            file,
            tables={
                key: substituted(table, (key,), values, Layer(file.label, (), {}).where, faults)
                for key, table in file.tables.items()
                if key != "variables"
            },
        )
        for file in files
    ]


def _named(
    files: Iterable[FarmFile], kind: str, faults: Faults
) -> Iterable[tuple[str, Layer, Path]]:
    """The tables of *kind*, each name once."""
    first: dict[str, str] = {}
    for file in files:
        for name, value in file.tables[kind].items():
            where = Layer(file.label, (kind, name), {}).where(())
            if name in first:
                faults.add(where, f"is already in {first[name]}")
                continue
            first[name] = str(file.path)
            table = table_at(value, where, faults)
            yield name, Layer(file.label, (kind, name), table), file.path.parent


def _prepared(layer: Layer, folder: Path, faults: Faults) -> Layer:
    """Short forms as tables, which others can be merged with; paths absolute, texts read."""
    table = unfolded(layer.table)
    for key, unfold in _SHORT.items():
        if key in table:
            table[key] = unfold(table[key])
    table = map_fields(table, PATHS, lambda _, text: _absolute(text, folder))
    if isinstance(name := table.get("profile"), str) and is_path(name):
        table["profile"] = absolute(name, folder)
    if isinstance(cloud := table.get("cloud_init"), dict):
        read = _FileTexts(Layer(layer.label, (*layer.prefix, "cloud_init"), cloud), folder, faults)
        table["cloud_init"] = read.put_in()
    return attrs.evolve(layer, table=table)


def _absolute(text: str, folder: Path) -> str:
    # What leads elsewhere stays as it is written, to be found and told.
    return text if pattern_problem(text, path=True) else absolute(text, folder)


def _restart(value: object) -> object:
    return {"policy": value} if isinstance(value, str) else value


def _joins(value: object) -> object:
    if not isinstance(value, list):
        return value
    return [{"name": item} if isinstance(item, str) else item for item in value]


def _health(value: object) -> object:
    checks = [value] if isinstance(value, str) else value
    return {"checks": checks} if isinstance(checks, list) else value


_SHORT: dict[str, Callable[[object], object]] = {
    "health": _health,
    "networks": _joins,
    "restart": _restart,
}


class _FileTexts:
    """What `[cloud_init]` names files for, read: `user_data_file` becomes `user_data`."""

    def __init__(self, layer: Layer, folder: Path, faults: Faults) -> None:
        self.layer = layer
        self.folder = folder
        self.faults = faults

    def put_in(self) -> dict[str, Any]:
        table = dict(self.layer.table)
        for key in ("user_data", "network_config"):
            if (name := table.pop(f"{key}_file", None)) is None:
                continue
            where = self.layer.where((f"{key}_file",))
            if key in table:
                self.faults.add(where, f"stands beside {key}", "give one of them")
            elif (text := self._text(name, where)) is not None:
                table[key] = text
        if (names := table.pop("ssh_key_files", None)) is not None:
            table["ssh_keys"] = [*self._own_keys(table), *self._keys(names)]
        return table

    def _own_keys(self, table: dict[str, Any]) -> list[Any]:
        own = table.get("ssh_keys", [])
        return own if isinstance(own, list) else [own]

    def _keys(self, names: object) -> Iterable[str]:
        if not isinstance(names, list):
            message = f"must be a list, not {kind_of(names)}"
            self.faults.add(self.layer.where(("ssh_key_files",)), message)
            return
        for number, name in enumerate(names):
            text = self._text(name, self.layer.where(("ssh_key_files", number)))
            lines = [line.strip() for line in (text or "").splitlines()]
            yield from (line for line in lines if line and not line.startswith("#"))

    def _text(self, name: object, where: str) -> str | None:
        if not isinstance(name, str) or not name or "\0" in name:
            self.faults.add(where, f"must be a file's name, not {name!r}")
            return None
        try:
            return read_text(Path(absolute(name, self.folder)))
        except SpecInvalid as error:
            self.faults.add(where, f"{name!r}: {error.faults[0].message}")
            return None


class _Profiles:
    """Each profile is read once, however many machines have it."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self._known: dict[str, Layer | None] = {}

    def layer(self, name: object, where: str) -> Layer | None:
        if not isinstance(name, str) or not name:
            self.faults.add(where, f"must be a profile's name or a path, not {name!r}")
            return None
        if name not in self._known:
            self._known[name] = self._read(name, where)
        return self._known[name]

    def _read(self, name: str, where: str) -> Layer | None:
        try:
            table, source = profile_table(name, Path("/"))
        except SpecInvalid as error:
            for fault in error.faults:
                if fault.path:
                    self.faults.add(f"{error.source}: {fault.path}", fault.message, fault.hint)
                else:
                    told = f"{error.source}: {fault.message}" if error.source else fault.message
                    self.faults.add(where, told, fault.hint)
            return None
        del table["schema"]
        return Layer(source, (), table)


def _whole(own: Layer, defaults: Sequence[Layer], profiles: _Profiles) -> Merged:
    layers = [own, *defaults]
    table: dict[str, Any] = {}
    for layer in reversed(layers):
        table = merged(table, dict(layer.table))
    if (name := table.pop("profile", None)) is None:
        return Merged(table, layers)
    profile = profiles.layer(name, origin(layers, ("profile",)))
    if profile is None:
        return Merged(table, layers, complete=False)
    # A profile is no pattern: its braces are braces.
    base = map_fields(dict(profile.table), PATHS, lambda _, text: braces_doubled(text))
    base.pop("name", None)
    if "networks" in table and "nics" not in table:
        base.pop("nics", None)  # the machine's networks are all it is in
    return Merged(merged(base, table), [*layers, profile])
