"""Saved machines as they are written down: a folder and what its manifest says.  Pure data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import attrs
import cattrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.block import Disk
from qmpkit.spec.convert import kind_of, structure_as, unstructure_any
from qmpkit.spec.data import spec_from_dict, spec_to_dict
from qmpkit.spec.faults import collect
from qmpkit.spec.machine import MachineSpec

__all__ = ["MANIFEST", "MEMORY", "SAVED_SCHEMA", "VARIABLES"]
__all__ += ["FileSum", "SavedLayer", "SavedMachine", "saved_from_json", "saved_to_json"]

SAVED_SCHEMA = 1
"""The format's number.  A reader refuses what is newer than itself."""

MANIFEST = "manifest.json"
"""The file in the folder that says what is in it."""

MEMORY = "memory"
"""The one that holds the RAM and the devices."""

VARIABLES = "variables"
"""The one that holds the UEFI variables."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_SUM = re.compile(r"xxh3_128:[0-9a-f]{32}", re.ASCII)


@attrs.frozen(kw_only=True)
class FileSum:
    """What tells that a file is as it was: its bytes, their checksum, and that of a sample."""

    length: int
    checksum: str
    sampled: str


@attrs.frozen(kw_only=True)
class SavedLayer:
    """An image that a disk is made of, where it was left: nobody may write to it meanwhile.

    `inode` 0: a device of the host, of which only the place is known.
    """

    file: str
    inode: int
    length: int
    mtime_ns: int


@attrs.frozen(kw_only=True)
class SavedMachine:
    """A machine that was saved: RAM, devices and disks of one moment.

    `spec`: as it ran, with the versioned machine type.  `time`: seconds since the epoch.
    `qmpkit`, `qemu`, `accel`: which versions saved it, and how it ran; `cpu_flags`: those of
    the host's processor, where the guest saw it.  `ram`: the form of the RAM.  `files`: what
    is in the folder, with copies of disks those of kernel, initrd and firmware too, which
    `spec` has by their names there.  `needs`: those that are elsewhere, by their paths.
    `disks`: the images of the disks that stay where they are, by the disk's id, the upper
    first; `copies`: the files in the folder of those that were copied.  `spent`: when it was
    restored onto its own disks, which have gone on since.
    """

    spec: MachineSpec
    time: float
    qmpkit: str
    qemu: str
    accel: str
    ram: Literal["plain", "packed", "mapped"] = "plain"
    cpu_flags: tuple[str, ...] = ()
    files: dict[str, FileSum] = attrs.field(factory=dict)
    needs: dict[str, FileSum] = attrs.field(factory=dict)
    disks: dict[str, tuple[SavedLayer, ...]] = attrs.field(factory=dict)
    copies: dict[str, str] = attrs.field(factory=dict)
    spent: float | None = None

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.spec.name

    @property
    def size(self) -> int:
        """Bytes of all files in the folder."""
        return sum(file.length for file in self.files.values())


def saved_to_json(saved: SavedMachine) -> str:
    """The text of the manifest."""
    plain = {**_plain(saved), "spec": spec_to_dict(saved.spec)}
    return json.dumps({"schema": SAVED_SCHEMA, **plain}, indent=1) + "\n"


def _plain(saved: SavedMachine) -> dict[str, Any]:
    plain: dict[str, Any] = unstructure_any(attrs.evolve(saved, spec=MachineSpec()))
    return plain


def saved_from_json(text: str | bytes, source: str) -> SavedMachine:
    """The saved machine that *text* tells of; SpecInvalid with all that is wrong with it."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecInvalid([Fault("", f"this is not JSON: {error}")], source) from None
    if fault := _schema_fault(data):
        raise SpecInvalid([fault], source)
    spec = _spec(data.get("spec"), source)
    rest = {key: value for key, value in data.items() if key not in ("schema", "spec")}
    try:
        saved = structure_as({**rest, "spec": {}}, SavedMachine)
    except cattrs.BaseValidationError as error:
        raise SpecInvalid([found.fault for found in collect(error)], source) from None
    saved = attrs.evolve(saved, spec=spec)
    if faults := list(_faults(saved)):
        raise SpecInvalid(faults, source)
    return saved


def _spec(data: object, source: str) -> MachineSpec:
    if not isinstance(data, Mapping):
        raise SpecInvalid([Fault("spec", f"must be a table, not {kind_of(data)}")], source)
    try:
        return spec_from_dict(data)
    except SpecInvalid as error:
        faults = [attrs.evolve(it, path=f"spec.{it.path}".rstrip(".")) for it in error.faults]
        raise SpecInvalid(faults, source) from None


def _schema_fault(data: object) -> Fault | None:
    schema = data.get("schema") if isinstance(data, Mapping) else None
    if type(schema) is not int:
        return Fault("", f"this is no manifest of a saved machine but {kind_of(data)}")
    if schema > SAVED_SCHEMA:
        newer = f"{schema} is newer than the {SAVED_SCHEMA} this qmpkit reads"
        return Fault("schema", newer, "update qmpkit")
    return None


def _faults(saved: SavedMachine) -> Iterator[Fault]:
    """What would lead out of the folder, or what is not there to be restored."""
    for name in saved.files:
        if not _NAME.fullmatch(name) or name == MANIFEST:
            yield Fault(f"files.{name}", f"{name!r} is no name of a file of it")
    wanted = {"the RAM": MEMORY} | {f"disk {disk}": it for disk, it in saved.copies.items()}
    for what, name in wanted.items():
        if name not in saved.files:
            yield Fault("files", f"there is no {name!r}, which is {what}")
    for group in ("files", "needs"):
        for name, file in getattr(saved, group).items():
            yield from _sum_faults(file, f"{group}.{name}")
    for disk in filter(_has_data, saved.spec.disks):
        if disk.id not in saved.disks and disk.id not in saved.copies:
            yield Fault("disks", f"nothing is said of disk {disk.id!r}")


def _has_data(disk: Disk) -> bool:
    return not disk.is_empty


def _sum_faults(file: FileSum, where: str) -> Iterator[Fault]:
    if file.length < 0:
        yield Fault(f"{where}.length", "counts from 0")
    for name in ("checksum", "sampled"):
        if not _SUM.fullmatch(getattr(file, name)):
            yield Fault(f"{where}.{name}", "is not xxh3_128: and 32 hexadecimal digits")
