"""What an image is: typed, with its formats stated, its chain followed and its holders named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from qmpkit.host.chain import MAX_CHAIN, Folders, foreign_extent, walk_chain
from qmpkit.host.headers import Header, backing_path, read_header
from qmpkit.host.holders import Holder, holders_of, image_locked
from qmpkit.images.drafts import StrPath
from qmpkit.images.tool import INFO_LIMITS, Asked, run_qemu_img
from qmpkit.process.limits import Limits
from qmpkit.process.spawner import shared_spawner

__all__ = ["Bitmap", "ImageInfo", "Snapshot", "chain", "info"]

_COMPRESSIONS = ("gzip", "bzip2", "xz", "zstd", "zip")


@attrs.frozen
class Snapshot:
    """A snapshot inside the image: `vm_size` bytes of machine state (0: of the disk alone).

    `taken` is in seconds since 1970, `vm_clock` in seconds of the guest's running.
    """

    id: str
    name: str
    vm_size: int
    taken: float
    vm_clock: float


@attrs.frozen
class Bitmap:
    """A persistent dirty bitmap: one bit for `granularity` bytes.

    `recording`: it is written on.  `broken`: it was in use when QEMU last ended, so it
    may lack changes.
    """

    name: str
    granularity: int
    recording: bool
    broken: bool


@attrs.frozen(kw_only=True)
class ImageInfo:
    """One image.

    `virtual_size`: bytes that a guest sees; `disk_size`: bytes taken on this file system.
    `cluster_size` in bytes, None where the format has none.  `encrypted`; `dirty`: not
    closed in order; `corrupt`: qcow2 says so of itself, None in other formats.
    `backing`: the base as the image names it, None without one; `backing_format`: its
    recorded format, None when there is none recorded, so that QEMU would guess;
    `backing_path`: the file that it leads to, None for `nbd://…` and the like.
    `data_file`: the file that holds the content of this qcow2, None when it does itself; one
    that is not absolute counts from QEMU's working directory, and `amend` sets it right.
    `key_slots`: the slots for secrets that are taken, 0 to 7, when it is encrypted by LUKS.
    `in_use`: a QEMU program has it open and has locked it.  `holders`: the processes that
    have it open then; those of other users are not seen, so there may be none.
    `raw`: all that qemu-img said.
    """

    path: Path
    format: str
    virtual_size: int
    disk_size: int
    cluster_size: int | None
    encrypted: bool
    dirty: bool
    corrupt: bool | None
    backing: str | None
    backing_format: str | None
    backing_path: Path | None
    data_file: Path | None
    snapshots: tuple[Snapshot, ...]
    bitmaps: tuple[Bitmap, ...]
    key_slots: tuple[int, ...]
    in_use: bool
    holders: tuple[Holder, ...]
    raw: Mapping[str, Any] = attrs.field(repr=False)


async def info(
    path: StrPath,
    *,
    format: str | None = None,
    allowed: Folders | None = None,
    limits: Limits = INFO_LIMITS,
) -> ImageInfo:
    """What the image at *path* is; works while a machine runs on it.

    *format* None: the header is read, and qemu-img is told what it says; QEMU's own
    probing is never used.  What is no known header is raw.  The image alone is opened,
    with the extents of a vmdk, which must be files in one of the folders *allowed* (None:
    anywhere).
    `ImageFailed` when it cannot be read or takes more than *limits* (1 GiB of memory,
    30 s of CPU); `BinaryMissing` without qemu-img.  About 10 ms.
    """
    asked = Asked.of("read", path)
    looked = await trio.to_thread.run_sync(_look, asked, format, allowed)
    words = ["info", "-U", "--output=json", "-f", looked.format, "--", str(asked.path)]
    done = await run_qemu_img(words, asked, limits)
    try:
        return _typed(asked.path, looked, json.loads(done.stdout.decode(errors="replace")))
    except (ValueError, KeyError, TypeError) as error:
        raise asked.failed(f"qemu-img's answer is not understood: {error!r}") from error


async def chain(
    path: StrPath,
    *,
    format: str | None = None,
    allowed: Folders | None = None,
    limits: Limits = INFO_LIMITS,
) -> tuple[ImageInfo, ...]:
    """The image at *path* and all those below it, the top first; each as from `info`.

    A base is taken in the format its overlay records.  A base that is no plain file
    (`nbd://…`) is the last image's `backing`, and not opened.  *allowed*: folders in which
    all files must be that the images name, else `ImageFailed`; None for any.
    `ImageFailed`, naming the file at fault, for a missing base, a loop, or more than
    `MAX_CHAIN` (200) images: found before qemu-img is run.
    """
    asked = Asked.of("follow the chain of", path)
    walked = await trio.to_thread.run_sync(walk_chain, asked.path, format, allowed)
    fault = walked.broken or (None if allowed is None else walked.outside)
    if fault is not None:
        raise asked.failed(fault.why, fault.cure)
    async with shared_spawner():
        found = [await info(asked.path, format=format, allowed=allowed, limits=limits)]
        # Bases of other formats than qcow2 are known only now, so the bound holds here too.
        while (base := found[-1].backing_path) is not None:
            if len(found) == MAX_CHAIN:
                raise asked.failed(f"deeper than {MAX_CHAIN} images")
            format = found[-1].backing_format
            found.append(await info(base, format=format, allowed=allowed, limits=limits))
    return tuple(found)


@attrs.frozen
class _Looked:
    format: str
    header: Header
    in_use: bool
    holders: tuple[Holder, ...]


def _look(asked: Asked, format: str | None, allowed: Folders | None) -> _Looked:
    """What can be known without qemu-img; blocking."""
    image = asked.path
    try:
        header = read_header(image, format)
        # Looking through all processes is left out where no lock says that there is one.
        in_use = image_locked(image, for_writing=True)
        holders = holders_of(image) if in_use else ()
    except OSError as error:
        raise asked.failed_by(error) from error
    if format is None and header.format in _COMPRESSIONS:
        raise asked.failed(f"it is compressed ({header.format})", "unpack it")
    format = format or header.format or "raw"
    if format == header.format and (foreign := foreign_extent(image, header, allowed)) is not None:
        raise asked.failed(foreign.why, foreign.cure)
    return _Looked(format, header, in_use, holders)


def _typed(image: Path, looked: _Looked, said: dict[str, Any]) -> ImageInfo:
    specific = said.get("format-specific", {}).get("data", {})
    is_qcow2 = looked.format == "qcow2"
    header = looked.header if is_qcow2 else Header(looked.format)
    # JSON cannot carry a name that is not UTF-8; the header can.
    backing = header.backing or said.get("backing-filename")
    return ImageInfo(
        path=image,
        format=said["format"],
        virtual_size=said["virtual-size"],
        disk_size=said["actual-size"],
        cluster_size=said.get("cluster-size"),
        encrypted=said.get("encrypted", False),
        dirty=said.get("dirty-flag", False),
        corrupt=specific.get("corrupt", False) if is_qcow2 else None,
        backing=backing,
        backing_format=header.backing_format or said.get("backing-filename-format"),
        backing_path=None if backing is None else backing_path(image, backing),
        data_file=Path(header.data_file.removeprefix("file:")) if header.data_file else None,
        snapshots=tuple(map(_snapshot, said.get("snapshots", ()))),
        bitmaps=tuple(map(_bitmap, specific.get("bitmaps", ()))),
        key_slots=_key_slots(specific.get("encrypt", specific) or {}),
        in_use=looked.in_use,
        holders=looked.holders,
        raw=said,
    )


def _snapshot(said: dict[str, Any]) -> Snapshot:
    return Snapshot(
        id=said["id"],
        name=said["name"],
        vm_size=said["vm-state-size"],
        taken=said["date-sec"] + said["date-nsec"] / 1e9,
        vm_clock=said["vm-clock-sec"] + said["vm-clock-nsec"] / 1e9,
    )


def _bitmap(said: dict[str, Any]) -> Bitmap:
    flags = said["flags"]
    return Bitmap(said["name"], said["granularity"], "auto" in flags, "in-use" in flags)


def _key_slots(said: dict[str, Any]) -> tuple[int, ...]:
    return tuple(number for number, slot in enumerate(said.get("slots", ())) if slot["active"])
