"""The store of a machine's UEFI variables: its boot entries, its keys.

Each machine has one of its own, a copy of the empty one that comes with the firmware.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import trio

from qmpkit.images.drafts import Draft, Placed, StrPath, new_image
from qmpkit.images.tool import Asked

__all__ = ["fill_store", "place_store", "private_store"]

_DOING = "copy the UEFI variables to"
_BLOCK = 1 << 20


async def place_store(path: StrPath, template: StrPath) -> Placed:
    """Make the store *path*, a copy of *template* that its owner alone may read and write.

    Whole or not there, and never over a file that exists: that, and whatever else
    prevents it, is `ImageFailed`.  Cancelled, nothing is left.
    """
    async with new_image(path, "raw", doing=_DOING) as draft:
        await trio.to_thread.run_sync(_fill, draft, Path(template))
    return draft.placed()


def _fill(draft: Draft, template: Path) -> None:
    flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
    try:
        # The descriptor of a draft without a name stays the draft's.
        inherited = next(iter(draft.fds.values()), None)
        fd = os.open(draft.path, flags, 0o600) if inherited is None else os.dup(inherited)
        with os.fdopen(fd, "wb") as target:
            os.fchmod(target.fileno(), 0o600)
            _copy(template, target)
    except OSError as error:
        raise draft.asked.failed(error.strerror or str(error)) from error


def fill_store(path: Path, source: Path) -> None:
    """Copy *source* into the file *path*, which is there, safe on disk.  Blocking; OSError."""
    with path.open("r+b") as target:
        _copy(source, target)
        target.flush()
        os.fsync(target.fileno())


def private_store(template: StrPath) -> BinaryIO:
    """A store in memory that ends with the last process that has it.

    Blocking, 1 ms (aarch64: 20 ms).  Raises `ImageFailed`.
    """
    store = os.fdopen(os.memfd_create("uefi-vars", os.MFD_CLOEXEC), "wb")
    try:
        _copy(Path(template), store)
    except OSError as error:
        store.close()
        asked = Asked.of("read the empty UEFI variables of", template)
        raise asked.failed(error.strerror or str(error)) from error
    return store


def _copy(template: Path, target: BinaryIO) -> None:
    """Copy what is not zero: the stores of aarch64 are 64 MiB of nothing else."""
    with template.open("rb") as source:
        while block := source.read(_BLOCK):
            if block.count(0) == len(block):
                target.seek(len(block), os.SEEK_CUR)
            else:
                target.write(block)
    target.truncate()
