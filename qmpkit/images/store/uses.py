"""Overlays know their base; here the base knows its overlays.

Whoever makes an overlay through qmpkit on an image of the store is written down before it
is made, so that a crash in between leaves a note too many and never one too few.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import attrs
import trio

from qmpkit.images.store.layout import Layout
from qmpkit.images.store.locks import held
from qmpkit.process.durable import write_durably

__all__ = ["IN_STORE", "Home", "Use", "homes_of", "note", "registered", "uses_of"]

IN_STORE = "it is in the image store, where others build on it"
"""Why an image is not written to."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CLEANUP_GRACE = 5.0  # seconds; the bound is for a file system that hangs
# Of one run of the command: while it runs its QEMU has the base open, and then it is gone.
_FLEETING = re.compile(r"qmpkit-[0-9a-f]{12}\.tmp")
_log = logging.getLogger("qmpkit.images")


@attrs.frozen
class Use:
    """An overlay that was, or is being, made on an image; `entry` is the note of it."""

    digest: str
    overlay: Path
    entry: Path


Home = tuple[Layout, str]


def homes_of(images: Iterable[Path]) -> list[Home]:
    """Of *images*, those that are in a store: that, and their digest.  Blocking."""
    found = []
    for image in images:
        real = Path(os.path.realpath(image))
        layout = Layout(real.parent.parent)
        is_one = real.parent == layout.blobs and _DIGEST.fullmatch(real.stem)
        if is_one and os.path.lexists(layout.record(real.stem)):
            found.append((layout, real.stem))
    return found


def uses_of(layout: Layout, digest: str) -> list[Use]:
    """The overlays that were noted for an image; blocking, OSError for what cannot be read."""
    with suppress(FileNotFoundError):
        entries = sorted((layout.uses / digest).glob("*.json"))
        return [Use(digest, Path(json.loads(entry.read_bytes())), entry) for entry in entries]
    return []


@asynccontextmanager
async def registered(homes: Iterable[Home], overlay: Path) -> AsyncIterator[None]:
    """Note that *overlay*, which the block makes, is to be on the images at *homes*.

    While the block runs `gc` takes it for an overlay that is there; when it fails, the
    note goes again.  A store that may only be read is told of in the log.  Raises OSError.
    """
    if _FLEETING.fullmatch(overlay.parent.name):
        homes = ()
    new: list[Path] = []
    with ExitStack() as stack:
        try:
            for layout, digest in homes:
                note = await _noted(layout, digest, overlay)
                if note is not None:
                    stack.callback(os.close, note.fd)
                    new += [note.entry] if note.new else []
            yield
        except BaseException:
            with trio.move_on_after(_CLEANUP_GRACE, shield=True):
                await trio.to_thread.run_sync(_remove, new, abandon_on_cancel=True)
            raise


async def _noted(layout: Layout, digest: str, overlay: Path) -> _Note | None:
    try:
        async with held(layout.lock):
            return await trio.to_thread.run_sync(_note, layout, digest, overlay)
    except PermissionError as error:
        _log.warning("the image store cannot note that %s is on it: %s", overlay, error)
        return None


@attrs.frozen
class _Note:
    entry: Path
    fd: int
    new: bool


def _note(layout: Layout, digest: str, overlay: Path) -> _Note:
    """Write it down and lock it, so that it is not taken for one whose overlay is gone."""
    if not os.path.lexists(layout.record(digest)):
        raise FileNotFoundError(errno.ENOENT, "it was removed from the image store in this moment")
    entry, new = note(layout, digest, overlay)
    fd = os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return _Note(entry, fd, new)


def note(layout: Layout, digest: str, overlay: Path) -> tuple[Path, bool]:
    """Write down that *overlay* is on an image; where, and whether that is new.

    Blocking, with the store's lock held; raises OSError.
    """
    overlay = Path(os.path.realpath(overlay.parent)) / overlay.name
    folder = layout.uses / digest
    folder.mkdir(mode=0o700, exist_ok=True)
    entry = folder / f"{hashlib.sha256(os.fsencode(overlay)).hexdigest()[:32]}.json"
    new = not entry.exists()
    if new:
        write_durably(entry, json.dumps(os.fspath(overlay)))
    return entry, new


def _remove(entries: Iterable[Path]) -> None:
    for entry in entries:
        with suppress(OSError):
            entry.unlink(missing_ok=True)
