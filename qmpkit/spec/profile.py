"""Profiles: TOML files that describe a machine, shipped or the user's own."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.convert import unfolded
from qmpkit.spec.data import parse_toml, schema_fault, spec_from_dict
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.paths import PATHS, map_fields
from qmpkit.spec.suggest import suggestion
from qmpkit.spec.text_files import read_text

__all__ = [
    "CATALOGUE",
    "absolute",
    "is_path",
    "load_profile",
    "merged",
    "profile_names",
    "profile_table",
    "profiles_dir",
]


CATALOGUE = "images"
"""The file among the profiles that is none: which images there are to be pulled."""


def profiles_dir() -> Path:
    """Where the shipped profiles are: in the wheel, or in the checkout it was installed from."""
    installed = Path(str(resources.files("qmpkit"))) / "profiles"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "profiles"


def profile_names() -> tuple[str, ...]:
    """The shipped profiles, sorted."""
    found = {path.stem for path in profiles_dir().glob("*.toml")}
    return tuple(sorted(found - {CATALOGUE}))


def load_profile(name_or_path: str | os.PathLike[str]) -> MachineSpec:
    """The machine a profile describes.

    A name ("q35") is a shipped profile; a `Path`, or a text with a slash or ending in
    ".toml", is a file. `extends` in a file names another profile whose tables it adds to;
    lists are replaced whole. Relative paths count from the file they are written in;
    those that begin with `${` are left to `expand`. Reads files, nothing else.
    Raises `SpecInvalid` with every fault.
    """
    data, source = profile_table(name_or_path, Path.cwd())
    return spec_from_dict(data, source=source)


def profile_table(name_or_path: str | os.PathLike[str], folder: Path) -> tuple[dict[str, Any], str]:
    """A profile's table with all it extends, every path absolute, and where it came from.

    A file's name counts from *folder*. The fields are not looked at: `spec_from_dict` does.
    """
    chain: list[Path] = []
    data = _load(_find(name_or_path, folder, "", ""), chain)
    first, *bases = map(str, chain)
    return data, f"{first} (extends {', '.join(bases)})" if bases else first


def is_path(name: str) -> bool:
    """Whether a text names a profile's file, not a shipped one."""
    return "/" in name or name.endswith(".toml")


_FARM = "qmpkit up has its machines run; a profile describes one"


def _find(name: str | os.PathLike[str], folder: Path, where: str, source: str) -> Path:
    if "\0" in os.fspath(name):
        raise SpecInvalid([Fault(where, f"{os.fspath(name)!r} holds a NUL character")], source)
    if not isinstance(name, str) or is_path(name):
        return folder / name
    names = profile_names()
    if name in names:
        return profiles_dir() / f"{name}.toml"
    hint = suggestion(name, names) or f"shipped: {', '.join(names)}; a file: ./{name}.toml"
    raise SpecInvalid([Fault(where, f"there is no profile {name!r}", hint)], source)


def _load(path: Path, chain: list[Path]) -> dict[str, Any]:
    """The file's table, merged over what it extends, every path absolute; adds to `chain`."""
    source = str(path)
    data: dict[str, Any] = parse_toml(_read(path, chain), source)
    chain.append(path)
    if fault := schema_fault(data):
        raise SpecInvalid([fault], source)
    if isinstance(data.get("machines"), dict):
        raise SpecInvalid(
            [Fault("machines", "this is a farm's file, not a profile", _FARM)], source
        )
    # First of all unfolded: firmware = "uefi" is no path.
    data = map_fields(unfolded(data), PATHS, lambda _, text: absolute(text, path.parent))
    extends = data.pop("extends", None)
    if extends is None:
        return data
    if not isinstance(extends, str):
        raise SpecInvalid([Fault("extends", "must be a profile's name or a path")], source)
    base = _find(extends, path.parent, "extends", source)
    # Not Path.resolve: a loop of symlinks is the reader's to complain about.
    if os.path.realpath(base) in map(os.path.realpath, chain):
        raise SpecInvalid([Fault("extends", f"{extends!r} extends itself")], source)
    return merged(_load(base, chain), data)


def _read(path: Path, chain: list[Path]) -> str:
    try:
        return read_text(path)
    except SpecInvalid as error:
        why = error.faults[0].message
        if not chain or why.startswith("this "):  # of what it holds: that file's own fault
            raise SpecInvalid(error.faults, str(path)) from error
        raise SpecInvalid([Fault("extends", f"{path} {why}")], str(chain[-1])) from error


def absolute(text: str, folder: Path) -> str:
    """A path that a file in *folder* holds; one that begins with a variable is left to it."""
    if not text or text.startswith("${"):
        return text
    return os.path.normpath(folder.absolute() / text)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on `base`, table by table."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result
