"""The catalogue: images that have a short name, and where their projects publish them."""

from __future__ import annotations

import functools
import platform
from typing import Any

import attrs
import cattrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.convert import structure_as
from qmpkit.spec.data import parse_toml, schema_fault
from qmpkit.spec.faults import collect
from qmpkit.spec.profile import CATALOGUE, profiles_dir
from qmpkit.spec.suggest import suggestion

__all__ = ["Entry", "Published", "catalogue", "host_arch", "published"]


@attrs.frozen
class Published:
    """One architecture's image: its address and its format; `checksums` as in `Entry`."""

    url: str
    format: str
    checksums: str = ""


@attrs.frozen(kw_only=True)
class Entry:
    """One image of the catalogue.

    `checksums` and `signature`: the names of the files beside the image, or URLs; "" for none.
    `keyring`: where a package of this host has the keys that sign them.
    """

    title: str
    x86_64: Published | None = None
    aarch64: Published | None = None
    riscv64: Published | None = None
    checksums: str = ""
    signature: str = ""
    keyring: str = ""

    @property
    def architectures(self) -> tuple[str, ...]:
        """Those it is published for."""
        return tuple(arch for arch in _ARCHITECTURES if getattr(self, arch) is not None)


@attrs.frozen
class _File:
    images: dict[str, Entry]


_ARCHITECTURES = ("x86_64", "aarch64", "riscv64")


def host_arch() -> str:
    """This host's architecture, by QEMU's name."""
    return platform.machine()


@functools.cache
def catalogue() -> dict[str, Entry]:
    """The shipped catalogue by name; blocking, `SpecInvalid` when somebody has spoilt it."""
    path = profiles_dir() / f"{CATALOGUE}.toml"
    return _read(path.read_text(encoding="utf-8"), str(path))


def _read(text: str, source: str) -> dict[str, Entry]:
    data: dict[str, Any] = parse_toml(text, source)
    if fault := schema_fault(data):
        raise SpecInvalid([fault], source)
    try:
        return structure_as({key: data[key] for key in data if key != "schema"}, _File).images
    except cattrs.BaseValidationError as error:
        raise SpecInvalid([found.fault for found in collect(error)], source) from None


def published(name: str, arch: str) -> tuple[Entry, Published]:
    """The entry *name* and its image for *arch*; blocking, `SpecInvalid` when there is none."""
    entries = catalogue()
    if name not in entries:
        hint = suggestion(name, entries) or f"it has {', '.join(entries)}"
        raise SpecInvalid([Fault("", f"the catalogue has no image {name!r}", hint)])
    entry = entries[name]
    image = getattr(entry, arch, None) if arch in _ARCHITECTURES else None
    if image is None:
        hint = f"it is for {', '.join(entry.architectures)}"
        raise SpecInvalid([Fault("", f"{name} is not published for {arch}", hint)])
    return entry, image
