"""Whether a saved machine can be restored: its files, and all that it stands on.  Blocking."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.chain import walk_chain
from qmpkit.host.headers import has_no_data
from qmpkit.host.kvm import cpu_flags
from qmpkit.spec.block import Disk
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.saved import (
    MANIFEST,
    MEMORY,
    FileSum,
    SavedLayer,
    SavedMachine,
    saved_from_json,
)

__all__ = [
    "SPENT",
    "layers_of",
    "memory_faults",
    "saved_at",
    "saved_faults",
    "sampled_sum",
    "visible_flags",
]

SPENT = "spent"
"""The place of the fault that its own disks have gone on: layers above them would not mind."""

_SAMPLES = 64
_SAMPLE = 64 << 10
_HOST_MODELS = ("host", "max")


def saved_at(folder: Path) -> SavedMachine:
    """The saved machine in *folder*; SpecInvalid when there is none, or one of a newer qmpkit."""
    path = folder / MANIFEST
    try:
        # Non-blocking: opening a FIFO would wait for a writer for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        hint = "name the folder that `vm.save` has made"
        raise SpecInvalid([Fault("", f"there is no {MANIFEST}", hint)], str(folder)) from None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise SpecInvalid([Fault("", f"it cannot be read: {why}")], str(path)) from error
    return saved_from_json(text, str(path))


def sampled_sum(path: Path) -> str:
    """The checksum of some pieces of the file, its first and last among them.  OSError."""
    import xxhash  # whoever saves nothing needs it not

    found = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        last = max(os.fstat(file.fileno()).st_size - _SAMPLE, 0)
        for number in range(_SAMPLES):
            found.update(os.pread(file.fileno(), _SAMPLE, last * number // (_SAMPLES - 1)))
    return f"xxh3_128:{found.hexdigest()}"


def layers_of(disk: Disk) -> tuple[SavedLayer, ...]:
    """The images that the disk is made of, as they are now.  OSError."""
    found = []
    for layer in walk_chain(Path(disk.file), disk.format).layers:
        for path in filter(None, (layer.path, layer.data_file)):
            it = path.stat()
            device = stat.S_ISBLK(it.st_mode)
            where, inode = str(path), 0 if device else it.st_ino
            size, changed = (0, 0) if device else (it.st_size, it.st_mtime_ns)
            found.append(SavedLayer(file=where, inode=inode, length=size, mtime_ns=changed))
    return tuple(found)


def visible_flags(spec: MachineSpec, accel: str) -> tuple[str, ...]:
    """The flags of this host's processor, for a guest that has seen them."""
    shown = accel == "kvm" and spec.cpu.model in _HOST_MODELS
    return tuple(sorted(cpu_flags())) if shown else ()


def memory_faults(spec: MachineSpec) -> Iterator[Fault]:
    """Why the RAM that a machine is to go on with is of no use on its disks of today."""
    if spec.resume_from is None:
        return
    memory = Path(spec.resume_from)
    left: Collection[str] = ()
    if memory.name == MEMORY and (memory.parent / MANIFEST).exists():
        try:
            saved = saved_at(memory.parent)
        except SpecInvalid as error:
            yield from error.faults
            return
        left = {it.id for it in spec.disks if Path(it.file) == _left_at(memory.parent, saved, it)}
        yield from saved_faults(memory.parent, saved, left)
    for disk in spec.disks:
        if disk.id not in left and not disk.is_readonly and disk.format == "qcow2":
            yield from _written_faults(disk)


def _left_at(folder: Path, saved: SavedMachine, disk: Disk) -> Path | None:
    """The image that the disk was left on when it was saved."""
    if (copy := saved.copies.get(disk.id)) is not None:
        return folder / copy
    layers = saved.disks.get(disk.id)
    return Path(layers[0].file) if layers else None


def _written_faults(disk: Disk) -> Iterator[Fault]:
    try:
        if has_no_data(Path(disk.file)):
            return
    except OSError:  # which is told as a fault of the disk
        return
    message = f"{disk.file!r} was written to since the snapshot whose RAM it is"
    yield Fault("resume_from", message, "go back to the snapshot once more")


def saved_faults(folder: Path, saved: SavedMachine, disks: Collection[str]) -> Iterator[Fault]:
    """Why it cannot be restored, found out in milliseconds: files are sampled, not read.

    *disks*: the ids of those that it is to go on with itself, on the images that it was
    left with.
    """
    if saved.spent is not None and disks:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(saved.spent))
        message = f"it was restored at {when}, and its disks have gone on since"
        yield Fault(SPENT, message, "what it wrote since is on them: boot the machine")
    for name, file in saved.files.items():
        yield from _file_faults(folder / name, file, f"files.{name}")
    for name, file in saved.needs.items():
        yield from _file_faults(Path(name), file, "needs")
    for disk, layers in saved.disks.items():
        for layer in layers:
            yield from _layer_faults(layer, f"disks.{disk}")
    lacking = sorted(set(saved.cpu_flags) - cpu_flags())
    if lacking:
        message = f"this host's processor lacks what the guest has found: {' '.join(lacking[:8])}"
        hint = "restore it on a host with the same, and save machines with a named CPU model"
        yield Fault("cpu_flags", message, hint)


def _file_faults(path: Path, file: FileSum, where: str) -> Iterator[Fault]:
    try:
        length = path.stat().st_size
        if length != file.length:
            yield Fault(where, f"{str(path)!r} has {length} bytes instead of {file.length}")
        elif sampled_sum(path) != file.sampled:
            yield Fault(where, f"the content of {str(path)!r} is another one")
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        yield Fault(where, f"{str(path)!r} cannot be read: {why}")


def _layer_faults(layer: SavedLayer, where: str) -> Iterator[Fault]:
    hint = "the RAM fits it no more: boot the machine without (a kept one: qmpkit discard)"
    try:
        it = Path(layer.file).stat()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        yield Fault(where, f"{layer.file!r} cannot be read: {why}", "put it back")
        return
    if not layer.inode:
        return
    if it.st_ino != layer.inode:
        yield Fault(where, f"{layer.file!r} is another file than when it was saved", hint)
    elif (it.st_size, it.st_mtime_ns) != (layer.length, layer.mtime_ns):
        yield Fault(where, f"{layer.file!r} was written to since the machine was saved", hint)
