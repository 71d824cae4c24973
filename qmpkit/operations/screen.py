"""Pictures of the guest's screen."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from os import PathLike
from weakref import WeakKeyDictionary

import trio

from qmpkit.errors import Fault, ImageFailed, QmpkitError, SpecInvalid
from qmpkit.operations._protocols import Screened
from qmpkit.qmp.errors import CommandRefused

__all__ = ["screenshot"]

_CLEANUP_GRACE = 2.0
_PNG_BEGIN = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_END = b"IEND\xaeB\x60\x82"


async def screenshot(machine: Screened, path: str | PathLike[str] | None = None) -> bytes:
    """The guest's screen as a PNG, also written to *path* when given.

    QMP `screendump` with `format: png` (QEMU 7.1+, built with libpng), into memory
    that was passed with `add-fd`, so QEMU needs no place to write to.  Works while
    the guest is paused, too.  Raises SpecInvalid for a machine without a display,
    CommandRefused when QEMU cannot, ImageFailed when what it wrote is no PNG.
    """
    if machine.spec.display == "none":
        lack = Fault("display", "it has no screen to take a picture of", 'add display = "std"')
        raise SpecInvalid([lack], source=f"machine {machine.name!r}")
    picture = await _canvases.setdefault(machine, _Canvas()).drawn(machine)
    if not (picture.startswith(_PNG_BEGIN) and picture.endswith(_PNG_END)):
        why = f"QEMU wrote {len(picture)} bytes that are no complete PNG"
        raise ImageFailed(machine.name, "take a screenshot of", why)
    if path is not None:
        await trio.Path(path).write_bytes(picture)
    return picture


class _Canvas:
    """Memory that QEMU draws into: one descriptor set a machine, passed once.

    A set for each picture would not go away: QEMU forgets to take the descriptor it
    opened off the set (7.2, 10.0), and 7.2 closes none at all while the guest is
    paused, so a thousand pictures of a paused guest would use up its descriptors.
    """

    def __init__(self) -> None:
        self._turn = trio.Lock()
        self._sheet: _Sheet | None = None
        self._kept = False

    async def drawn(self, machine: Screened) -> bytes:
        """What QEMU draws now."""
        async with self._turn:
            sheet = self._sheet or await self._passed(machine)
            try:
                sheet.clear()
                await machine.execute("screendump", {"filename": sheet.path, "format": "png"})
                return sheet.content()
            except CommandRefused:
                raise  # nobody draws on it, so the next may
            except BaseException:
                await self._abandon(machine, sheet)
                raise

    async def _passed(self, machine: Screened) -> _Sheet:
        sheet = _Sheet()
        try:
            await machine.execute("add-fd", {"fdset-id": sheet.fdset}, fds=[sheet.theirs])
        except BaseException:
            await self._abandon(machine, sheet)
            raise
        self._sheet = sheet
        if not self._kept:
            self._kept = True
            machine.services.start_soon(self._keep, name=f"screenshots of {machine.name}")
        return sheet

    async def _abandon(self, machine: Screened, sheet: _Sheet) -> None:
        """Never use it again: QEMU may still draw on it, or may not have got it."""
        self._sheet = None
        sheet.close()
        with trio.move_on_after(_CLEANUP_GRACE, shield=True), suppress(QmpkitError):
            await machine.execute("remove-fd", {"fdset-id": sheet.fdset})

    async def _keep(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            if self._sheet is not None:
                self._sheet.close()


class _Sheet:
    """An anonymous file: `ours` to read it, `theirs` to write, as QEMU asks for that mode."""

    def __init__(self) -> None:
        self.ours = os.memfd_create("qmpkit screenshot")
        self.theirs = os.open(f"/proc/self/fd/{self.ours}", os.O_WRONLY | os.O_CLOEXEC)
        # Chosen here, because another client of this QEMU may have sets of its own.
        self.fdset = 1 + secrets.randbits(31)
        self.path = f"/dev/fdset/{self.fdset}"

    def clear(self) -> None:
        """Empty, and QEMU's place in it at the beginning: both descriptors share that."""
        os.ftruncate(self.theirs, 0)
        os.lseek(self.theirs, 0, os.SEEK_SET)

    def content(self) -> bytes:
        return os.pread(self.ours, os.fstat(self.ours).st_size, 0)

    def close(self) -> None:
        os.close(self.theirs)
        os.close(self.ours)


_canvases: WeakKeyDictionary[Screened, _Canvas] = WeakKeyDictionary()
