"""A template that has been opened, as its clones need it; and what is each one's own."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import attrs
import trio

from qmpkit.errors import HostLacks
from qmpkit.host.resolve import Resolution
from qmpkit.machine.state_forms import OpenState
from qmpkit.process.held_dirs import hold_new_dir, sweep
from qmpkit.spec.machine import MachineSpec
from qmpkit.templates.errors import TemplateBroken, TemplateInUse
from qmpkit.templates.files import flaws_by_size
from qmpkit.templates.manifest import Manifest

__all__ = ["CLONES", "Own", "Saved", "provided", "removed"]

CLONES = "clones"
"""The folder in a template's where clones have their overlays, each a folder of its own."""

_CLEANUP_GRACE = 5.0
_PRIVATE = re.compile(r"[0-9a-f]{12}")


@attrs.frozen
class Saved:
    """`spec`: the machine as it was saved, its files where they are.

    `overlays`: of each disk that a clone may write, by its id, an overlay with nothing in it.
    `private`: what every clone is started as here, but for who it is and its overlays.
    """

    path: Path
    manifest: Manifest
    spec: MachineSpec
    overlays: Mapping[str, bytes]
    private: Resolution


@attrs.frozen
class Own:
    """What one clone starts from: the overlay of each disk, by its id, and the open state."""

    overlays: Mapping[str, Path]
    state: OpenState

    @property
    def folder(self) -> Path | None:
        """Where the overlays are, which end with the clone."""
        return next((file.parent for file in self.overlays.values()), None)


@asynccontextmanager
async def provided(saved: Saved, place: Path | None) -> AsyncIterator[Own]:
    """What one clone needs, its overlays in a folder of its own in *place*; gone after the block.

    The template cannot be removed meanwhile.  A program that is killed leaves the folder to
    the next one that clones there.  Raises TemplateInUse while the template is being removed,
    TemplateBroken when it has no state or RAM any more, HostLacks when the overlays cannot be made.
    """
    limiter = trio.CapacityLimiter(1)  # threads stuck in a slow disk must not hold this up
    stack = ExitStack()
    try:
        found = await trio.to_thread.run_sync(_made, saved, place, stack, limiter=limiter)
        yield found
    finally:
        with trio.move_on_after(_CLEANUP_GRACE, shield=True):
            await trio.to_thread.run_sync(stack.close, limiter=limiter, abandon_on_cancel=True)


def _made(saved: Saved, place: Path | None, stack: ExitStack) -> Own:
    # All in one go: each change to a worker thread and back is a tenth of a millisecond.
    _hold(saved.path, stack)
    # QEMU would make a RAM that is gone anew, full of zeros.
    ram = (file for file in saved.manifest.files if file.name == saved.manifest.ram)
    if flaws := flaws_by_size(saved.path, ram):
        raise TemplateBroken(str(saved.path), flaws)
    try:
        state = OpenState.of(saved.path / "state")
    except OSError as error:
        raise TemplateBroken(str(saved.path), [f"state: {error.strerror}"]) from error
    stack.callback(state.close)
    return Own(_new_overlays(saved, place, stack), state)


def _new_overlays(saved: Saved, place: Path | None, stack: ExitStack) -> Mapping[str, Path]:
    if not saved.overlays:
        return {}
    folder = place or saved.path / CLONES
    try:
        if folder not in _swept:
            _swept.add(folder)
            sweep(folder, _PRIVATE)
        held = hold_new_dir(folder, lambda: secrets.token_hex(6))
        stack.callback(held.remove)
        made = {disk: held.path / f"{disk}.qcow2" for disk in saved.overlays}
        for disk, file in made.items():
            file.write_bytes(saved.overlays[disk])
    except OSError as error:
        what = f"cannot make a clone's disks in {str(folder)!r}: {error.strerror}"
        raise HostLacks(what, "name another folder in `place`") from error
    return made


_swept: set[Path] = set()


def _hold(path: Path, stack: ExitStack) -> None:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostLacks(f"cannot open the template {str(path)!r}: {error.strerror}") from error
    stack.callback(os.close, lock)
    with suppress(OSError):  # where there are no locks on directories, there is no such care
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TemplateInUse(str(path), "clone") from error


def removed(path: Path, ram: str) -> None:
    """Remove a template that no clone runs from, its RAM too.  Blocking.

    TemplateInUse; HostLacks when its files cannot be removed: then it is whole yet, unless
    that was found out in the midst of them.
    """
    try:
        if path.is_symlink():
            why = f"it is a symbolic link to {str(path.readlink())!r}"
            raise HostLacks(f"{_CANNOT} {str(path)!r}: {why}", "name the folder that is meant")
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _taken_away(path, ram)
        finally:
            os.close(lock)
    except BlockingIOError as error:
        raise TemplateInUse(str(path), "remove") from error
    except OSError as error:
        what = f"{_CANNOT} {str(path)!r}: {error.strerror or error}"
        raise HostLacks(what, "make it and the folder that it is in writable") from error


_CANNOT = "cannot remove the template"


def _taken_away(path: Path, ram: str) -> None:
    import shutil  # whoever only clones needs it not

    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    # A folder that can have another name can go; what a killed program leaves so is swept.
    hidden = path.with_name(f".qk-{secrets.token_hex(6)}.template")
    path.rename(hidden)
    try:
        if ram.startswith("/"):
            with suppress(FileNotFoundError):
                Path(ram).unlink()
        shutil.rmtree(hidden)
    except OSError:
        with suppress(OSError):
            hidden.rename(path)
        raise
