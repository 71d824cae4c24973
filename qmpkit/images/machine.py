"""`machine_for`: a machine around a disk image of which nothing else is known."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, cast, get_args

import attrs
import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.headers import backing_path, read_header
from qmpkit.host.kvm import host_arch, read_text
from qmpkit.images.look import Looked, look_at
from qmpkit.spec.block import BaseFormat, Disk, DiskFormat, DiskInterface, Overlay
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import MACHINE_NAME_LIMIT, machine_name_problem
from qmpkit.spec.network import Forward, UserNic
from qmpkit.spec.sizes import GIB, MIB

__all__ = ["SSH", "Wishes", "machine_around", "machine_for", "name_from"]

SSH = Forward(host=0, guest=22)
"""Any free port of the host, on the loopback address alone, leads to the guest's ssh."""

_BOARDS = {"x86_64": "q35", "aarch64": "virt", "riscv64": "virt"}
_MEMORY, _LEAST_MEMORY, _MEMORY_STEP = 2 * GIB, 512 * MIB, 64 * MIB
_CPUS = 2

StrPath = str | os.PathLike[str]


def _optional_path(value: StrPath | None) -> Path | None:
    return None if value is None else Path(value)


async def machine_for(
    path: StrPath,
    *,
    overlay: StrPath | None = None,
    write: bool = False,
    format: str | None = None,
    arch: str | None = None,
    firmware: str | Uefi | None = None,
    memory: int | str | None = None,
    cpus: int | None = None,
    forwards: Iterable[Forward | str] = (SSH,),
    name: str | None = None,
    allowed: Iterable[StrPath] = (),
) -> MachineSpec:
    """A machine that boots the disk image at *path*; looks at it, makes and changes nothing.

        spec = await qmpkit.images.machine_for("debian.qcow2", overlay="work.qcow2")
        async with qmpkit.running(spec) as vm: ...

    *overlay*: where the guest's writes go, a qcow2 that is made at start when it is
    missing and that stays; with *write* they go into the image itself.  One of the
    two must be said, except for an ISO, which becomes a CD drive.

    The rest is found out when it is not given.  *format*: from the header, confirmed
    by qemu-img.  *arch* ("x86_64", "aarch64", "riscv64"): from the partition table,
    else the host's.  *firmware* ("bios", "uefi", `Uefi(…)` or a file): a PC whose disk has boot
    code gets a BIOS, which starts faster; a disk with an EFI system partition alone, and
    every other architecture, UEFI.  *memory* (bytes or "4GiB"): 2 GiB, less on a
    small host, at least 512 MiB.  *cpus*: 2, less on a small host.  *forwards*: any
    free port to the guest's port 22; `await vm.forwards()` tells which.  *name*: from
    the file's name.

    *allowed*: for a stranger's image, the folders in which all files must be that it names;
    the machine's `image_folders`.  Without any they may be anywhere on this host.

    Raises `SpecInvalid` when *path* is no image or the wishes do not go together,
    `ImageFailed` when it is damaged, `BinaryMissing` without qemu-img.  Takes about
    25 ms; cancelling leaves nothing behind.
    """
    folders = tuple(allowed)
    looked = await look_at(path, format=format, allowed=folders or None)
    wishes = Wishes(
        overlay=overlay,
        write=write,
        arch=arch,
        firmware=firmware,
        memory=memory,
        cpus=cpus,
        forwards=forwards,
        name=name,
        allowed=folders,
    )
    return await trio.to_thread.run_sync(machine_around, looked, wishes)


@attrs.frozen(kw_only=True)
class Wishes:
    """What `machine_for` is told about the machine; what is None is found out."""

    overlay: Path | None = attrs.field(default=None, converter=_optional_path)
    write: bool = False
    arch: str | None = None
    firmware: str | Uefi | None = None
    memory: int | str | None = None
    cpus: int | None = None
    forwards: Iterable[Forward | str] = (SSH,)
    name: str | None = None
    allowed: tuple[StrPath, ...] = ()


def machine_around(looked: Looked, wishes: Wishes) -> MachineSpec:
    """`machine_for` an image that was looked at before; blocking."""
    arch = wishes.arch or looked.boot.arch or ("x86_64" if looked.boot.bios else _arch_here())
    if faults := list(_faults(looked, wishes, arch)):
        raise SpecInvalid(faults, str(looked.path))
    # The converters of the spec judge what the caller gave.
    memory: Any = _memory() if wishes.memory is None else wishes.memory
    cpu: Any = min(_CPUS, len(os.sched_getaffinity(0))) if wishes.cpus is None else wishes.cpus
    forwards: Any = wishes.forwards
    return MachineSpec(
        name=wishes.name or name_from(looked.path),
        arch=arch,
        machine=_BOARDS[arch],
        firmware=_firmware(looked, arch, wishes.firmware),
        memory=memory,
        cpu=cpu,
        image_folders=wishes.allowed,
        disks=(_disk(looked, wishes, arch),),
        nics=(UserNic(forwards=forwards),),
        agent=True,
        rng=True,
        balloon=True,
        root_ports=4,
    )


def _arch_here() -> str:
    here = host_arch()
    return here if here in _BOARDS else "x86_64"


def _firmware(looked: Looked, arch: str, wanted: str | Uefi | None) -> str | Uefi | None:
    if wanted is None:
        by_bios = arch == "x86_64" and (looked.boot.bios or not looked.boot.uefi)
        return None if by_bios else Uefi()
    return None if wanted == "bios" else wanted


def _memory() -> int:
    """2 GiB, or half of what the host has left when that is less."""
    left = 2 * _MEMORY
    for line in read_text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            left = int(line.split()[1]) << 10
    bounded = min(_MEMORY, left // 2) // _MEMORY_STEP * _MEMORY_STEP
    return max(_LEAST_MEMORY, bounded)


def _disk(looked: Looked, wishes: Wishes, arch: str) -> Disk:
    if looked.is_cd:
        drive: DiskInterface = "cdrom" if arch == "x86_64" else "scsi-cdrom"
        return Disk(looked.path, format="raw", interface=drive, boot=0)
    if wishes.overlay is not None:
        base = Overlay(looked.path, format=cast(BaseFormat, looked.format))
        return Disk(wishes.overlay, format="qcow2", make=base, boot=0)
    stated = cast(DiskFormat, looked.format)
    on_host = looked.path.is_block_device()
    driver: Literal["file", "host_device"] = "host_device" if on_host else "file"
    return Disk(looked.path, format=stated, driver=driver, boot=0)


def _faults(looked: Looked, wishes: Wishes, arch: str) -> Iterator[Fault]:
    if arch not in _BOARDS:
        known = ", ".join(_BOARDS)
        yield Fault("arch", f"{arch!r} is no architecture that qmpkit knows", f"it knows {known}")
    elif wishes.firmware == "bios" and arch != "x86_64":
        yield Fault("firmware", f"{arch} has no BIOS", "leave it out: it boots by UEFI")
    if looked.is_cd:
        if wishes.write or wishes.overlay is not None:
            yield Fault("", "this is a CD, which no guest writes to", "leave that out")
        return
    if looked.format not in get_args(BaseFormat):
        yield Fault("format", f"qmpkit runs no image in the format {looked.format}")
    elif wishes.write and looked.format not in get_args(DiskFormat):
        what = f"a guest writes to raw and qcow2 only, and this is {looked.format}"
        yield Fault(
            "write", what, f"qmpkit image convert {looked.path.name} {looked.path.stem}.qcow2"
        )
    if wishes.write and wishes.overlay is not None:
        yield Fault("write", "the guest writes into the image or into an overlay, not into both")
    elif wishes.overlay is not None:
        yield from _overlay_faults(looked, wishes.overlay)
    elif not wishes.write:
        hint = "overlay=FILE, or write=True: into the image"
        yield Fault("overlay", "it is not said where the guest's writes go", hint)


def _overlay_faults(looked: Looked, overlay: Path) -> Iterator[Fault]:
    """An overlay that is there must belong to the image, or the guest would see another disk."""
    name = repr(str(overlay))
    try:
        header = read_header(overlay)
        base = backing_path(overlay.absolute(), header.backing) if header.backing else None
        if base is None or not base.samefile(looked.path):
            yield Fault("overlay", f"{name} exists and is no overlay of this image")
    except FileNotFoundError:
        return  # to be made; or its base is gone, which the start tells
    except OSError as error:
        yield Fault("overlay", f"{name} cannot be read: {error.strerror}")


def name_from(path: Path) -> str:
    """A machine's name made of a file's: "debian-12" for "/images/debian-12.qcow2"."""
    kept = "".join(char for char in path.stem if char.isprintable()).lstrip(".- ")
    short = kept.encode()[:MACHINE_NAME_LIMIT].decode(errors="ignore").strip()
    return short if short and not machine_name_problem(short) else "vm"
