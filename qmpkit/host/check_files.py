"""The files a machine needs: there, readable, in the stated format, not in use.  Blocking."""

from __future__ import annotations

import difflib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import attrs

from qmpkit._paths import cache_dir
from qmpkit.errors import BinaryMissing, Fault, ImageInUse
from qmpkit.host.chain import walk_chain
from qmpkit.host.encrypted import encrypted_problems
from qmpkit.host.findings import Problem, lacking
from qmpkit.host.headers import Header, backing_path, read_header
from qmpkit.host.holders import holders_of, image_locked
from qmpkit.host.saved import memory_faults
from qmpkit.host.tools import qemu_img
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.machine import MachineSpec

__all__ = [
    "base_warnings",
    "check_disk",
    "check_disks",
    "check_plain_files",
    "check_untouched",
    "file_in_use",
    "raw_warnings",
    "unreadable",
]

_QEMU_FORMATS = ("raw", "qcow2", "qcow", "qed", "vmdk", "vhdx", "vpc", "vdi", "luks", "parallels")
FileId = tuple[int, int]


def check_plain_files(spec: MachineSpec) -> Iterator[Problem]:
    """Kernel, initrd, firmware, and the RAM that it is to go on with."""
    wanted = [] if isinstance(spec.firmware, Uefi) else [("firmware", spec.firmware)]
    if spec.kernel is not None:
        wanted += [("kernel.image", spec.kernel.image), ("kernel.initrd", spec.kernel.initrd)]
    wanted.append(("resume_from", spec.resume_from))
    for where, name in wanted:
        if name is not None and _sound(name):
            yield from unreadable(Path(name), where)


def check_disks(spec: MachineSpec) -> Iterator[Problem]:
    """Every disk's image, the bases below it, and what `make` needs."""
    writers: dict[FileId, str] = {}
    for number, disk in enumerate(spec.disks):
        if _sound(disk.file):
            check = _Check(disk, f"disks[{number}]", writers, _allowed(spec, disk))
            yield from check.problems()
    if len(spec.disks) > 1:
        yield from _bases_written(spec, writers)


def check_untouched(spec: MachineSpec) -> Iterator[Problem]:
    """The RAM that a machine is to go on with is of no use on disks that went on without it."""
    yield from map(Problem, memory_faults(spec))


def check_disk(spec: MachineSpec, disk: Disk, where: str) -> Iterator[Problem]:
    """One image that a machine of *spec* is to get."""
    yield from _Check(disk, where, {}, _allowed(spec, disk)).problems()


def _allowed(spec: MachineSpec, disk: Disk) -> tuple[str, ...] | None:
    """Where the files may be that the disk's images name; None: anywhere."""
    if not spec.image_folders:
        return None
    # The base that the spec names itself is no stranger's word.
    own = (disk.make.file,) if isinstance(disk.make, Overlay) else ()
    return (*spec.image_folders, *own)


def raw_warnings(spec: MachineSpec) -> Iterator[str]:
    """A sentence for each disk that is stated to be raw and does not look so."""
    for number, disk in enumerate(spec.disks):
        where, file, stated = f"disks[{number}]", disk.file, str(disk.format)
        if disk.make is not None and _to_make(disk):
            if not isinstance(disk.make, Overlay):
                continue
            where, file, stated = f"{where}.make", disk.make.file, str(disk.make.format)
        if stated == "raw" and _sound(file):
            with suppress(OSError):  # which is a fault, and told as one
                yield from _looks_otherwise(where, file, read_header(file))


def base_warnings(spec: MachineSpec) -> Iterator[str]:
    """A sentence for each disk that is there already, on another base than `make` names."""
    for number, disk in enumerate(spec.disks):
        if isinstance(disk.make, Overlay) and _sound(disk.file) and not _to_make(disk):
            with suppress(OSError):
                header = read_header(disk.file)
                found = backing_path(Path(disk.file), header.backing) if header.backing else None
                if found is None or _identity(found) != _identity(Path(disk.make.file)):
                    yield (
                        f"disks[{number}]: {disk.file!r} exists and is used as it is: its base is "
                        f"{'none' if found is None else repr(str(found))}, "
                        f"not {disk.make.file!r} as `make` says"
                    )


def _looks_otherwise(where: str, file: str, header: Header) -> Iterator[str]:
    if not header.format:
        return
    what, cure = f"a {header.format} image", "convert it"
    if header.format == "qcow2":
        cure = 'format = "qcow2" is right'
        what += f" with the base {header.backing!r}" if header.backing else ""
        what += f" with its content in {header.data_file!r}" if header.data_file else ""
    elif header.format not in _QEMU_FORMATS:
        what, cure = f"a compressed file ({header.format})", "unpack it"
    yield (
        f"{where}: {file!r} is used as raw, which is stated, but it begins as {what} does: "
        f"{cure} only if it is that, and not a disk whose guest has written it"
    )


def _sound(name: str) -> bool:
    """Whether the kernel can be asked about it; otherwise it is a fault of the spec alone."""
    return bool(name) and "\0" not in name


def _bases_written(spec: MachineSpec, writers: dict[FileId, str]) -> Iterator[Problem]:
    """A base that another disk of the same machine writes to would be corrupted."""
    for number, disk in enumerate(spec.disks):
        for base in _all_bases(disk):
            other = writers.get(_identity(base) or (0, 0))
            if other is not None:
                message = f"its base {str(base)!r} is written by {other}"
                yield Problem(Fault(f"disks[{number}].file", message))


def _all_bases(disk: Disk) -> Iterator[Path]:
    """The bases of a disk as it is, or as it will be made."""
    if disk.is_empty:
        return
    image, stated = Path(disk.file), str(disk.format)
    if _to_make(disk) and isinstance(disk.make, Overlay):
        image, stated = Path(disk.make.file), str(disk.make.format)
        yield image
    # As far as they can be followed: what a guest wrote on a raw disk leads nowhere.
    for layer in walk_chain(image, stated).layers[1:]:
        yield layer.path


def _identity(path: Path) -> FileId | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _to_make(disk: Disk) -> bool:
    return disk.make is not None and not os.path.lexists(disk.file)


@attrs.frozen
class _Check:
    disk: Disk
    where: str
    writers: dict[FileId, str]
    allowed: tuple[str, ...] | None

    def problems(self) -> Iterator[Problem]:
        if _to_make(self.disk):
            yield from self._makeable()
        else:
            yield from self._usable()

    # --- an image that is there, or should be

    def _usable(self) -> Iterator[Problem]:
        at, image = f"{self.where}.file", Path(self.disk.file)
        hint = "" if self.disk.is_readonly else _MAKE_HINT
        problems = list(self._lost_layer(at) or unreadable(image, at, hint=hint))
        yield from problems
        if problems:
            return
        if not self.disk.is_readonly and not os.access(image, os.W_OK, effective_ids=True):
            why = "is on a read-only file system" if _read_only(image) else "may not be written"
            yield Problem(Fault(at, f"{self.disk.file!r} {why}", "readonly = true"))
        yield from self._driver(image, at)
        yield from self._format(image, self.disk.format, self.where, at)
        yield from self._sharing(image, at)
        yield from file_in_use(image, at, for_writing=not self.disk.is_readonly)

    def _lost_layer(self, at: str) -> list[Problem]:
        """Not the hint at a name that is similar: that is of the layer below."""
        file, origin = self.disk.file, self.disk.origin
        if origin is None or os.path.lexists(file):
            return []
        message = f"{file!r} does not exist, with what was written since {origin!r} was left"
        hint = (
            "put it back; or begin anew, without the files of that disk and without the machine "
            "(`qmpkit rm`)"
        )
        return [Problem(Fault(at, message, hint))]

    def _driver(self, image: Path, at: str) -> Iterator[Problem]:
        mode = image.stat().st_mode
        is_device = stat.S_ISBLK(mode)
        if not is_device and not stat.S_ISREG(mode):
            message = f"{self.disk.file!r} is neither a file nor a block device"
            yield Problem(Fault(at, message, "name an image"))
        elif is_device and self.disk.driver == "file":
            hint = 'driver = "host_device"'
            yield Problem(Fault(at, f"{self.disk.file!r} is a block device", hint))
        elif not is_device and self.disk.driver == "host_device":
            yield Problem(Fault(at, f"{self.disk.file!r} is no block device", 'driver = "file"'))

    def _sharing(self, image: Path, at: str) -> Iterator[Problem]:
        identity = _identity(image)
        if identity is None or self.disk.is_readonly:
            return
        other = self.writers.setdefault(identity, self.where)
        if other != self.where:
            yield Problem(Fault(at, f"{self.disk.file!r} is the image of {other} too"))

    # --- an image that is made at start

    def _makeable(self) -> Iterator[Problem]:
        at, folder = f"{self.where}.file", Path(self.disk.file).parent
        if not folder.is_dir():
            hint = f"mkdir -p {folder}"
            yield Problem(Fault(at, f"the directory {str(folder)!r} does not exist", hint))
        elif not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            why = "its file system is read-only" if _read_only(folder) else "no permission"
            message = f"no file can be made in {str(folder)!r}: {why}"
            yield Problem(Fault(at, message, "choose another place"))
        try:
            qemu_img()
        except BinaryMissing as error:
            yield lacking(f"{self.where}.make", error)
        if isinstance(self.disk.make, Overlay) and _sound(self.disk.make.file):
            yield from self._base(self.disk.make)

    def _base(self, make: Overlay) -> Iterator[Problem]:
        at, base = f"{self.where}.make.file", Path(make.file)
        problems = list(unreadable(base, at))
        yield from problems
        if problems:
            return
        yield from self._format(base, make.format, f"{self.where}.make", at)
        yield from file_in_use(base, at, for_writing=False)

    # --- both

    def _format(self, image: Path, stated: str, where: str, at: str) -> Iterator[Problem]:
        """The stated format against the header, here and in every base below."""
        try:
            header = read_header(image)
        except OSError as error:
            yield Problem(Fault(at, f"{str(image)!r} cannot be read: {_reason(error)}"))
            return
        if mismatch := _mismatch(image, stated, header):
            yield Problem(Fault(f"{where}.format", *mismatch))
        elif stated == header.format:
            yield from self._chain(image, stated, at)

    def _chain(self, image: Path, stated: str, at: str) -> Iterator[Problem]:
        chain = walk_chain(image, stated, self.allowed)
        fault = chain.broken or (None if self.allowed is None else chain.outside)
        if fault is not None:
            yield Problem(Fault(at, fault.why, fault.cure))
        own = at.endswith("].file")
        where = at.removesuffix(".file").removesuffix(".make")
        yield from encrypted_problems(self.disk, chain, where, own=own)
        for depth, layer in enumerate(chain.layers):
            if depth:
                yield from file_in_use(layer.path, at, for_writing=False)
            data = layer.data_file
            if data:
                # The data file of the image itself is written with it.
                writes = depth == 0 and own and not self.disk.is_readonly
                yield from file_in_use(data, at, for_writing=writes)


def _read_only(path: Path) -> bool:
    """Whether nobody may write there, not even root."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


_MAKE_HINT = 'make = "10GiB" has it made at start'


def unreadable(path: Path, where: str, hint: str = "") -> Iterator[Problem]:
    """That *path* is not there or cannot be read; *hint* is the last resort of a cure."""
    try:
        _open_once(path)
    except FileNotFoundError:
        if path.is_symlink():
            message = f"{str(path)!r} is a link to {str(path.readlink())!r}, which does not exist"
            yield Problem(Fault(where, message))
            return
        cure = _guest_builder(path) or _similar(path) or hint
        yield Problem(Fault(where, f"{str(path)!r} does not exist", cure))
    except OSError as error:
        yield Problem(Fault(where, f"{str(path)!r} cannot be read: {_reason(error)}"))


def _guest_builder(path: Path) -> str:
    """A part of a shipped profile's test guest is made, not corrected."""
    guests = cache_dir() / "guests"
    if not path.is_relative_to(guests) or path == guests:
        return ""
    return f"python -m qmpkit.testing.guests {path.relative_to(guests).parts[0]} makes it"


def _open_once(path: Path) -> None:
    if path.is_dir():  # which can be opened, but not read
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _similar(path: Path) -> str:
    """A hint at files of nearly the same name in the same directory."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=2, cutoff=0.75)
    return f"did you mean {' or '.join(repr(name) for name in close)}?" if close else ""


def _mismatch(image: Path, stated: str, header: Header) -> tuple[str, str] | None:
    # Stated raw is raw, whatever its guest wrote into the first sector: `raw_warnings`.
    if stated in ("raw", header.format):
        return None
    name = repr(str(image))
    if header.empty:
        return f"{name} is empty, not {stated}", 'remove it and have it made with make = "10GiB"'
    if not header.format:
        return f"{name} is raw, not {stated}", 'format = "raw"'
    if header.format == "qcow2":
        return f"{name} is qcow2, not {stated}", 'format = "qcow2"'
    if header.format in _QEMU_FORMATS:
        hint = f"qemu-img convert -f {header.format} -O qcow2"
        return f"{name} is {header.format}, not {stated}", hint
    return f"{name} is compressed ({header.format}), not {stated}", "unpack it"


def file_in_use(
    image: Path,
    at: str,
    cure: str = "stop that machine, or use an overlay of its base",
    *,
    for_writing: bool,
) -> Iterator[Problem]:
    """That another QEMU has *image* open in a way that keeps us out, and who it is."""
    try:
        locked = image_locked(image, for_writing=for_writing)
    except OSError:
        return  # that it cannot be opened is said elsewhere, in words that fit
    if locked:
        name = str(image)
        holders = ", ".join(map(str, holders_of(image))) or "another process"
        alone = ImageInUse(name, "use", f"{holders} has it open", cure)
        yield Problem(Fault(at, f"{name!r} is in use: {holders} has it open", cure), alone)
