"""A template as it is written down: what was saved, of which machine, on which host.  Pure data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import cattrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.convert import kind_of, structure_as, unstructure_any
from qmpkit.spec.data import spec_from_dict, spec_to_dict
from qmpkit.spec.faults import collect
from qmpkit.spec.machine import MachineSpec

__all__ = ["MANIFEST", "MANIFEST_SCHEMA", "Build", "GuestHooks", "Manifest", "SavedFile"]
__all__ += ["located", "manifest_from_json", "manifest_to_json"]

MANIFEST = "manifest.json"
"""The file in a template's folder that says what is in it."""

MANIFEST_SCHEMA = 1
"""The format's number.  A reader refuses what is newer than itself."""

_CHECKSUM = re.compile(r"xxh3_128:[0-9a-f]{32}", re.ASCII)


@attrs.frozen(kw_only=True)
class SavedFile:
    """One file of a template.

    `name`: in the template's folder, or, of a RAM that is elsewhere, its absolute path.
    `checksum`: of every byte; `sample`: of some, which are read whenever it is opened.
    """

    name: str
    length: int
    mtime_ns: int
    checksum: str
    sample: str


@attrs.frozen(kw_only=True)
class Build:
    """What a state can be loaded by: QEMU as it was, and what it ran on.

    `cpu`: the host's processor, of guests that ran on it by KVM; "" otherwise.
    """

    binary: str
    version: tuple[int, int, int]
    package: str
    accel: str
    cpu: str = ""


@attrs.frozen(kw_only=True)
class GuestHooks:
    """What lies ready in the guest for clones to become somebody.

    `program` reads a clock and entropy and runs `script`, with the rest of what it is told.
    `services`: stopped for the template, started again in each clone.
    """

    program: str
    script: str
    services: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Manifest:
    """What a template's folder holds.

    `id`: its own.  `created`: seconds since the epoch, which its guests' clocks show first.
    `spec`: the machine, its files by their names in the folder.  `ram`: the name of the file
    with its memory.  `hooks`: None when its clones can only be twins.
    """

    id: str
    created: float
    spec: MachineSpec
    build: Build
    ram: str
    files: tuple[SavedFile, ...]
    hooks: GuestHooks | None = None


def located(spec: MachineSpec, folder: Path) -> MachineSpec:
    """*spec* of a manifest, its files where they are."""

    def at(name: str | None) -> str | None:
        return name if name is None else str(folder / name)

    kernel, firmware = spec.kernel, spec.firmware
    if kernel is not None:
        kernel = attrs.evolve(kernel, image=at(kernel.image), initrd=at(kernel.initrd))
    if isinstance(firmware, str):
        firmware = at(firmware)
    elif firmware is not None:
        firmware = attrs.evolve(firmware, template=at(firmware.template))
    disks = [d if d.is_empty else attrs.evolve(d, file=str(folder / d.file)) for d in spec.disks]
    memory = attrs.evolve(spec.memory, mem_path=at(spec.memory.mem_path))
    return attrs.evolve(spec, kernel=kernel, firmware=firmware, disks=disks, memory=memory)


def manifest_to_json(manifest: Manifest) -> str:
    """The text of `manifest.json`."""
    spec = spec_to_dict(manifest.spec)
    rest = {
        field.name: unstructure_any(getattr(manifest, field.name))
        for field in attrs.fields(Manifest)
        if field.name != "spec"
    }
    return json.dumps({"schema": MANIFEST_SCHEMA, **rest, "spec": spec}, indent=1) + "\n"


def manifest_from_json(text: str, source: str) -> Manifest:
    """The manifest that *text* is; SpecInvalid with all that is wrong with it."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecInvalid([Fault("", f"this is not JSON: {error}")], source) from None
    if fault := _schema_fault(data):
        raise SpecInvalid([fault], source)
    spec = spec_from_dict(data["spec"], source=f"{source}: spec")
    rest = {key: value for key, value in data.items() if key not in ("schema", "spec")}
    try:
        parts = structure_as(rest, _Rest)
    except cattrs.BaseValidationError as error:
        raise SpecInvalid([found.fault for found in collect(error)], source) from None
    known = {field.name: getattr(parts, field.name) for field in attrs.fields(_Rest)}
    manifest = Manifest(spec=spec, **known)
    if faults := list(_faults(manifest)):
        raise SpecInvalid(faults, source)
    return manifest


@attrs.frozen(kw_only=True)
class _Rest:
    """All but the spec, which has a reader of its own."""

    id: str
    created: float
    build: Build
    ram: str
    files: tuple[SavedFile, ...]
    hooks: GuestHooks | None = None


def _schema_fault(data: object) -> Fault | None:
    found: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
    schema = found.get("schema")
    if type(schema) is not int or not isinstance(found.get("spec"), Mapping):
        return Fault("", f"this is no manifest of a template but {kind_of(data)}")
    if schema > MANIFEST_SCHEMA:
        newer = f"{schema} is newer than the {MANIFEST_SCHEMA} this qmpkit reads"
        return Fault("schema", newer, "update qmpkit")
    return None


def _faults(manifest: Manifest) -> Iterator[Fault]:
    """What would lead out of the folder, and what no checksum guards."""
    for number, file in enumerate(manifest.files):
        where = f"files[{number}]"
        if Path(file.name).name != file.name and file.name != manifest.ram:
            yield Fault(f"{where}.name", f"{file.name!r} is not in the template's folder")
        for kind in ("checksum", "sample"):
            if not _CHECKSUM.fullmatch(getattr(file, kind)):
                yield Fault(f"{where}.{kind}", "is not xxh3_128: and 32 hexadecimal digits")
    names = [file.name for file in manifest.files]
    for name in _named(manifest):
        if name not in names:
            yield Fault("files", f"nothing is known of {name!r}, which the machine needs")


def _named(manifest: Manifest) -> Iterator[str]:
    """The files that a clone is started from."""
    spec = manifest.spec
    yield from ("state", manifest.ram)
    yield from (disk.file for disk in spec.disks if not disk.is_empty)
    if spec.kernel is not None:
        yield from filter(None, (spec.kernel.image, spec.kernel.initrd))
    if isinstance(spec.firmware, str):
        yield spec.firmware
