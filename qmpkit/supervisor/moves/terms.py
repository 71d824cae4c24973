"""What a machine of another host may have here: the files that are allowed, and no programs.

Blocking: links are followed, and the headers of images are read; nothing is run, or opened
by QEMU, before all of it is known to be allowed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from qmpkit.errors import Fault
from qmpkit.host.chain import inside, walk_chain
from qmpkit.operations.migration.compatibility import spec_faults
from qmpkit.operations.migration.storage import DiskMove
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.paths import PATHS, texts_of

__all__ = ["ReceiveTerms", "bounded", "terms_faults"]


def _folder(value: str | os.PathLike[str]) -> Path:
    return Path(value).absolute()


def _folders(value: Iterable[str | os.PathLike[str]]) -> tuple[Path, ...]:
    return tuple(map(_folder, value))


@attrs.frozen(kw_only=True)
class ReceiveTerms:
    """What a supervisor grants who comes from another host.

    `address`: HOST:PORT at which QEMU takes the memory, port 0 being any.  `tls`: the folder
    of certificates.  `allow`: the folders that all files of a machine must be in.
    """

    address: str
    tls: Path = attrs.field(converter=_folder)
    allow: tuple[Path, ...] = attrs.field(converter=_folders)


def terms_faults(
    spec: MachineSpec, terms: ReceiveTerms, moves: Sequence[DiskMove] = ()
) -> tuple[Fault, ...]:
    """What a machine of another host may not have: other files than are allowed, and programs.

    Nor may its images name other files as their bases, or for their content: QEMU would open
    them.
    """
    return (*_faults(spec, terms, moves),)


def _faults(spec: MachineSpec, terms: ReceiveTerms, moves: Sequence[DiskMove]) -> Iterator[Fault]:
    for path in dict.fromkeys(_files_of(spec, moves)):
        if not inside(Path(path), terms.allow):
            yield Fault("", f"{path!r} is in no folder that is allowed here", "receive --allow DIR")
    yield from _image_faults(spec, terms, {move.id for move in moves})
    if spec.qemu is not None:
        yield from _program_faults(spec.qemu, terms)
    yield from spec_faults(spec)  # its source has asked so, too, if it is one of ours
    powers: dict[str, object] = {
        "launcher": spec.launcher,
        "env": spec.env,
        "extra_args": spec.extra_args,
        "run_as": spec.run_as,
        "sandbox": not spec.sandbox,
    }
    for name, has in powers.items():
        if has:
            yield Fault(name, "is not taken from another host", "start the machine without it")


_PROGRAMS = (Path("/usr/bin"), Path("/usr/local/bin"), Path("/usr/libexec"))


def bounded(spec: MachineSpec, terms: ReceiveTerms) -> MachineSpec:
    """The same, whose images name only files that are allowed here, whenever it starts again."""
    allowed = [folder for folder in spec.image_folders if inside(Path(folder), terms.allow)]
    return attrs.evolve(spec, image_folders=allowed or terms.allow)


def _files_of(spec: MachineSpec, moves: Iterable[DiskMove]) -> Iterator[str]:
    """All that a machine could ever open; `image_folders` are opened by nobody."""
    for path in texts_of(spec, tuple(it for it in PATHS if it[0] != "image_folders")):
        if path and ("/" in path or path != spec.firmware):  # that QEMU looks for among its own
            yield path
    yield from (move.base[0] for move in moves if move.base is not None)
    for point in spec.snapshots:
        yield from (*point.disks.values(), *point.beside)


def _image_faults(spec: MachineSpec, terms: ReceiveTerms, new: Collection[str]) -> Iterator[Fault]:
    """Which images name what is not allowed, or what is not there; not those that are *new*."""
    images: list[tuple[str, str, str | None]] = [
        (f"disks[{number}].file", disk.file, disk.format)
        for number, disk in enumerate(spec.disks)
        if disk.id not in new and not disk.is_empty
    ]
    images += [
        (f"snapshots[{number}]", file, point.formats.get(disk))
        for number, point in enumerate(spec.snapshots)
        for disk, file in point.disks.items()
    ]
    if isinstance(spec.firmware, Uefi):
        for name in ("code", "template", "vars"):
            if (file := getattr(spec.firmware, name)) is not None:
                images.append((f"firmware.{name}", file, None))
    for where, file, format in images:
        path = Path(file)
        if inside(path, terms.allow) and path.exists():  # else it is not even looked at
            chain = walk_chain(path, format, terms.allow)
            if (fault := chain.outside or chain.broken) is not None:
                yield Fault(where, fault.why, fault.cure)


def _program_faults(qemu: str, terms: ReceiveTerms) -> Iterator[Fault]:
    """It is run to be asked what it can do, so it must be one, and in its place."""
    if not Path(qemu).name.startswith(("qemu", "kvm")):
        yield Fault("qemu", f"{qemu!r} has no QEMU's name", "qemu-system-…")
    elif "/" in qemu and not inside(Path(qemu), (*terms.allow, *_PROGRAMS)):
        yield Fault("qemu", f"{qemu!r} is in no folder that is allowed here", "receive --allow DIR")
