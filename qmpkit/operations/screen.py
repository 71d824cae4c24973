"""Pictures of the guest's screen."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike

import trio

from qmpkit.errors import Fault, ImageFailed, QmpkitError, SpecInvalid
from qmpkit.operations._protocols import Screened

__all__ = ["screenshot"]

_CLEANUP_GRACE = 2.0
_PNG_BEGIN = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_END = b"IEND\xaeB\x60\x82"


async def screenshot(machine: Screened, path: str | PathLike[str] | None = None) -> bytes:
    """The guest's screen as a PNG, also written to *path* when given.

    QMP `screendump` with `format: png` (QEMU 7.1+, built with libpng), into memory
    that is passed with `add-fd`, so QEMU needs no place to write to.  Works while
    the guest is paused, too.  Raises SpecInvalid for a machine without a display,
    CommandRefused when QEMU cannot, ImageFailed when what it wrote is no PNG.
    """
    if machine.spec.display == "none":
        lack = Fault("display", "it has no screen to take a picture of", 'add display = "std"')
        raise SpecInvalid([lack], source=f"machine {machine.name!r}")
    picture = await _dumped(machine)
    if not (picture.startswith(_PNG_BEGIN) and picture.endswith(_PNG_END)):
        why = f"QEMU wrote {len(picture)} bytes that are no complete PNG"
        raise ImageFailed(machine.name, "take a screenshot of", why)
    if path is not None:
        await trio.Path(path).write_bytes(picture)
    return picture


async def _dumped(machine: Screened) -> bytes:
    # The set's number is ours, not QEMU's choice: a cancelled add-fd can be undone, too.
    fdset = 1 + secrets.randbits(31)
    with _memory() as (ours, theirs):
        try:
            await machine.execute("add-fd", {"fdset-id": fdset}, fds=[theirs])
            dump = {"filename": f"/dev/fdset/{fdset}", "format": "png"}
            await machine.execute("screendump", dump)
        finally:
            with trio.move_on_after(_CLEANUP_GRACE, shield=True), suppress(QmpkitError):
                await machine.execute("remove-fd", {"fdset-id": fdset})
        return os.pread(ours, os.fstat(ours).st_size, 0)


@contextmanager
def _memory() -> Iterator[tuple[int, int]]:
    """An anonymous file: a descriptor to read it, and one that can only write.

    QEMU takes from a set the descriptor whose access mode is that of its own open.
    """
    ours = os.memfd_create("qmpkit screenshot")
    try:
        theirs = os.open(f"/proc/self/fd/{ours}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield ours, theirs
        finally:
            os.close(theirs)
    finally:
        os.close(ours)
