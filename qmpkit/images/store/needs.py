"""Who needs an image of the store: nothing that a chain may still lead to is removed.

What is asked, the surest first: the notes of the overlays that were made on it; the files
beside those (a copy, another name); the disks of all kept machines, running or not; the
folders that the caller names; and the processes that have it open.  A note whose overlay is
not there any more counts too: it may have been moved to where nobody looks, unless the
caller knows better.
Blocking, all of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import attrs

from qmpkit.host.chain import walk_chain
from qmpkit.host.holders import holders_of, image_locked
from qmpkit.images.store.layout import Layout
from qmpkit.images.store.locks import is_held
from qmpkit.images.store.uses import Use, uses_of
from qmpkit.images.users import has_base, images_under
from qmpkit.process.entries import entries_in
from qmpkit.process.roots import JOURNAL, state_root

__all__ = ["Content", "Needs", "needs_of"]

_MOST_BESIDE = 2000  # files that are looked at in one directory
_UNREAD = ("qed", "vmdk")  # formats with bases that only QEMU reads

FileId = tuple[int, int]


class Content(Protocol):
    """An image of the store, also one without a record."""

    @property
    def digest(self) -> str:
        """The SHA-256 that its file is named by."""

    @property
    def path(self) -> Path:
        """Its file."""


@attrs.define
class Needs:
    """`why`: by digest, in words, what needs the image.  `idle`: notes that nobody needs.

    `found`: overlays in the folders that were named, each with the digest of its base.
    """

    why: dict[str, list[str]] = attrs.field(factory=dict)
    idle: list[Path] = attrs.field(factory=list)
    found: list[tuple[str, Path]] = attrs.field(factory=list)

    def of(self, image: Content) -> list[str]:
        """What needs *image*; also a process that has it open."""
        return [*self.why.get(image.digest, ()), *_opened_by(image.path)]

    def _add(self, digest: str, why: str) -> None:
        if why not in (known := self.why.setdefault(digest, [])):
            known.append(why)


def needs_of(
    layout: Layout, images: Iterable[Content], *, gone: bool, look_in: Iterable[Path] = ()
) -> Needs:
    """What needs the *images*; *gone*: an overlay that is not in its place was deleted.

    *look_in*: folders in which, and below which, others may be; OSError when one cannot be
    looked into.  Called with the store's lock held, so that no overlay is noted meanwhile.
    """
    needs = Needs()
    files = dict(_identified(images))
    seen: set[Path] = set()
    for digest in files.values():
        try:
            noted = uses_of(layout, digest)
        except (OSError, ValueError) as error:
            needs._add(digest, f"its overlays are not known: {error}")
            continue
        for use in noted:
            _judge(needs, use, files, gone=gone)
            seen.add(use.overlay)
    for path in _others(seen):
        for digest in _below(path, files):
            needs._add(digest, f"{str(path)!r} is on it")
    for path in images_under(look_in):
        for digest in _below(path, files) if path not in seen else ():
            needs._add(digest, f"{str(path)!r} is on it")
            needs.found.append((digest, path))
    return needs


def _opened_by(image: Path) -> list[str]:
    """Which processes have *image* open, in words."""
    holders = [who for who in holders_of(image) if who.pid != os.getpid()]
    if holders:
        return [f"{', '.join(map(str, holders))} has it open"]
    try:
        locked = image_locked(image, for_writing=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"it cannot be looked at: {error.strerror}"]
    return ["a process that this user may not see has it open"] if locked else []


def _identified(images: Iterable[Content]) -> Iterator[tuple[FileId, str]]:
    for image in images:
        with suppress(FileNotFoundError):
            found = image.path.stat()
            yield (found.st_dev, found.st_ino), image.digest


def _judge(needs: Needs, use: Use, files: dict[FileId, str], *, gone: bool) -> None:
    """Whether the overlay of a note is on its image yet."""
    name = repr(str(use.overlay))
    try:
        if is_held(use.entry):
            needs._add(use.digest, f"{name} is being made on it")
            return
        use.overlay.lstat()
    except (FileNotFoundError, NotADirectoryError):
        if gone:
            needs.idle.append(use.entry)
        else:
            needs._add(
                use.digest, f"{name}, made on it, is not in its place: it was deleted or moved"
            )
        return
    except OSError as error:
        needs._add(use.digest, f"{name}, made on it, cannot be looked at: {error.strerror}")
        return
    chain = walk_chain(use.overlay)
    if use.digest in _below(use.overlay, files):
        needs._add(use.digest, f"{name} is on it")
    elif chain.broken or chain.outside or any(each.format in _UNREAD for each in chain.layers):
        needs._add(use.digest, f"{name}, made on it, may be on it still")
    else:
        needs.idle.append(use.entry)


def _below(path: Path, files: dict[FileId, str]) -> set[str]:
    """The digests of the images of the store that are below the image at *path*."""
    found = set()
    for layer in walk_chain(path).layers:
        with suppress(OSError):
            status = layer.path.stat()
            found.add(files.get((status.st_dev, status.st_ino), ""))
    return found - {""}


def _others(noted: set[Path]) -> Iterator[Path]:
    """Images that were not noted and may be on one of ours."""
    for folder in sorted({path.parent for path in noted}):
        with suppress(OSError):
            for number, path in enumerate(folder.iterdir()):
                if number == _MOST_BESIDE:
                    break
                if path not in noted and _has_base(path):
                    yield path
    for path in sorted(_disks_on_record()):
        if path not in noted and os.path.lexists(path):
            yield path


def _has_base(path: Path) -> bool:
    with suppress(OSError):
        return has_base(path)
    return False


def _disks_on_record() -> set[Path]:
    """The disks of every kept machine of this user's."""
    found: set[Path] = set()
    with suppress(OSError):
        for journal in state_root().glob(f"*/{JOURNAL}"):
            with suppress(OSError):
                for record in entries_in(journal).values():
                    with suppress(ValueError, RecursionError):
                        found.update(_files_in(json.loads(record)))
    return found


def _files_in(data: Any) -> Iterator[Path]:
    if isinstance(data, dict):
        file = data.get("file")
        if isinstance(file, str) and file.startswith("/"):
            yield Path(file)
    for inner in (
        data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    ):
        yield from _files_in(inner)
