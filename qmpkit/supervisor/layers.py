"""Where the data of machines are that are started anew: in the layers that their disks have got.

Their owners write the files that they know.  What guests have written since a snapshot or a
move is in others, also when the machine was forgotten meanwhile, and to start it from the
file as written would be to lose that.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import attrs
import trio

from qmpkit.errors import Fault, JournalFailed, QmpkitError, SpecInvalid
from qmpkit.operations.block.merge import without_point
from qmpkit.process.durable import write_durably
from qmpkit.spec.block import Disk
from qmpkit.spec.data import spec_from_dict, spec_to_dict
from qmpkit.spec.firmware import Firmware, Uefi
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.snapshots import Snapshot

__all__ = ["Forgotten", "carried_over", "refuse_points", "still_there"]

log = logging.getLogger("qmpkit.supervisor")


class Forgotten:
    """The specs of machines that are forgotten and whose disks have layers, in *folder*."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._specs: dict[str, MachineSpec] = {}

    async def load(self) -> None:
        """Read what earlier supervisors have left."""
        self._specs = dict(await trio.to_thread.run_sync(lambda: list(_read(self._folder))))

    def get(self, name: str) -> MachineSpec | None:
        """What a forgotten machine had; None when its disks are as its owner wrote them."""
        return self._specs.get(name)

    async def put(self, spec: MachineSpec) -> None:
        """Remember, when there is something; JournalFailed when that cannot be written."""
        if not _has_layers(spec):
            return
        spec = _without_saved(spec)
        await self._write(spec.name, json.dumps(spec_to_dict(spec)))
        self._specs[spec.name] = spec

    async def drop(self, name: str) -> None:
        """It is on record again, or its disks are gone."""
        if self._specs.pop(name, None) is not None:
            await self._write(name, None)

    async def without_bare(self, name: str, snapshot: str) -> None:
        """A machine's snapshot of its RAM alone is deleted; JournalFailed."""
        if (spec := self._specs.get(name)) is None:
            return
        for point in spec.snapshots:
            if point.name == snapshot and not point.disks:
                left = without_point(spec, "", point)
                await (self.put(left) if _has_layers(left) else self.drop(name))

    async def _write(self, name: str, text: str | None) -> None:
        path = self._folder / f"{name}.json"

        def write() -> None:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_durably(path, text)

        try:
            await trio.to_thread.run_sync(write)
        except OSError as error:
            raise JournalFailed(str(path), error.strerror or str(error)) from error


def _read(folder: Path) -> Iterator[tuple[str, MachineSpec]]:
    for path in sorted(folder.glob("*.json")):
        try:
            # Earlier versions have remembered with what it was saved.
            spec = _without_saved(spec_from_dict(json.loads(path.read_bytes())))
            yield spec.name, spec
        except (OSError, ValueError, QmpkitError) as error:
            log.warning("%s cannot be read, which tells of a machine's disks: %s", path, error)


def _has_layers(spec: MachineSpec) -> bool:
    origins = [disk.origin for disk in spec.disks]
    origins += [spec.firmware.origin] if isinstance(spec.firmware, Uefi) else []
    return bool(spec.snapshots) or any(origins)


def _without_saved(spec: MachineSpec) -> MachineSpec:
    """What a machine was saved with goes as it is forgotten; the RAM of its snapshots stays."""
    if any(point.memory == spec.resume_from for point in spec.snapshots):
        return spec
    return attrs.evolve(spec, resume_from=None)


def still_there(known: MachineSpec) -> MachineSpec:
    """*known* of a forgotten machine, without the disks of which no file is left.  Blocking.

    Who has removed all of them wants them made anew.  As long as one is left, those that it
    needs or that need it are looked for.
    """
    left = [disk for disk in known.disks if disk.is_empty or _is_left(known, disk)]
    if len(left) == len(known.disks):
        return known
    return attrs.evolve(known, disks=left, resume_from=None)


def _is_left(known: MachineSpec, disk: Disk) -> bool:
    files = [disk.file, disk.origin or disk.file]
    files += [point.disks[disk.id] for point in known.snapshots if disk.id in point.disks]
    return any(map(os.path.lexists, files))


def carried_over(wanted: MachineSpec, known: MachineSpec | None) -> MachineSpec:
    """*wanted*, a machine's new spec, with what was done to its disks since the one before.

    A disk is known by the file that its owner wrote, whatever its place in the list.  Pure
    but for the working directory.
    """
    if known is None:
        return wanted
    before = {_place(disk): disk for disk in known.disks if not disk.is_empty}
    ids: dict[str, str] = {}
    disks = []
    for disk in wanted.disks:
        old = None if disk.is_empty else before.get(_place(disk))
        if old is not None:
            ids[old.id] = disk.id
            disk = _on(disk, old)
        disks.append(disk)
    points = [_renamed(point, ids) for point in known.snapshots]
    kept = {point.name for point in points if point.disks}
    parents = {point.name: point.parent for point in points}
    return attrs.evolve(
        wanted,
        disks=disks,
        snapshots=[
            attrs.evolve(point, parent=_nearest(point.parent, kept, parents))
            for point in points
            if point.disks
        ],
        snapshot=_nearest(known.snapshot, kept, parents),
        resume_from=known.resume_from,
        firmware=_with_store(wanted.firmware, known.firmware),
    )


def _with_store(wanted: Firmware, known: Firmware) -> Firmware:
    if not isinstance(wanted, Uefi) or not isinstance(known, Uefi) or known.origin is None:
        return wanted
    if wanted.vars is None or Path(wanted.vars).absolute() != Path(known.origin).absolute():
        return wanted
    return attrs.evolve(wanted, vars=known.vars, origin=known.origin)


def _place(disk: Disk) -> str:
    return str(Path(disk.origin or disk.file).absolute())


def _on(disk: Disk, old: Disk) -> Disk:
    if old.origin is None:
        return disk
    return attrs.evolve(
        disk,
        file=old.file,
        format=old.format,
        node=old.node,
        driver=old.driver,
        make=None,
        origin=old.origin,
    )


def _renamed(point: Snapshot, ids: dict[str, str]) -> Snapshot:
    """With the disks' ids of today; a disk that the machine has no more is in no point either."""
    return attrs.evolve(
        point,
        disks={ids[disk]: file for disk, file in point.disks.items() if disk in ids},
        formats={ids[disk]: format for disk, format in point.formats.items() if disk in ids},
    )


def _nearest(name: str | None, kept: set[str], parents: dict[str, str | None]) -> str | None:
    while name is not None and name not in kept:
        name = parents.get(name)
    return name


def refuse_points(spec: MachineSpec) -> None:
    """Raise SpecInvalid when a disk would write to what one of the snapshots holds.  Pure."""
    held = {
        file: point.name
        for point in spec.snapshots
        if point.kind == "external"
        for file in point.disks.values()
    }
    faults = [
        Fault(f"disks[{number}].file", f"{disk.file!r} is what the snapshot {name!r} holds")
        for number, disk in enumerate(spec.disks)
        if not disk.is_readonly and (name := held.get(disk.file)) is not None
    ]
    if faults:
        raise SpecInvalid(faults, f"machine {spec.name!r}")
