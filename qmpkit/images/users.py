"""The overlays of an image, as far as they can be known.  Blocking."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import trio

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.host.chain import walk_chain
from qmpkit.host.headers import backing_path, read_header

__all__ = ["has_base", "images_under", "overlays_of", "overlays_under"]

_MOST_FILES = 10_000  # in one folder; a header takes some 20 µs


def overlays_of(base: Path, folders: Iterable[Path]) -> tuple[Path, ...]:
    """The images in *folders* that are overlays of *base*, by their headers.

    No image knows its overlays: there may be others elsewhere.  What cannot be read, and
    what comes after 10,000 files of a folder, is left out.
    """
    try:
        wanted = base.stat()
    except OSError:
        return ()
    places = dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders)
    return tuple(path for place in places for path in _in(place) if _on(path, wanted))


def overlays_under(base: Path, folders: Iterable[Path]) -> tuple[Path, ...]:
    """The images in *folders*, and in all folders below them, that have *base* in their chain.

    As `images_under` otherwise.
    """
    wanted = base.stat()
    return tuple(path for path in images_under(folders) if _above(path, wanted))


def images_under(folders: Iterable[Path]) -> Iterator[Path]:
    """The images in *folders*, and in all folders below them, whose headers name a base.

    Links are not followed.  Somebody relies on all of them being found, so what cannot be
    looked into raises OSError, and what is no folder at all `SpecInvalid`; what is gone in
    that moment does neither.  In a thread of trio's: a cancellation ends it.
    """
    for folder in dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders):
        if not folder.is_dir():
            raise SpecInvalid([Fault("look_in", f"{str(folder)!r} is no directory")])
        for place, _, names in os.walk(folder, onerror=_refuse):
            for name in names:
                trio.from_thread.check_cancelled()
                path = Path(place, name)
                with suppress(FileNotFoundError):
                    if has_base(path):
                        yield path


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def has_base(path: Path) -> bool:
    """Whether *path* is a file whose header names a base; raises OSError."""
    return stat.S_ISREG(path.lstat().st_mode) and bool(read_header(path).backing)


def _above(path: Path, base: os.stat_result) -> bool:
    for layer in walk_chain(path).layers[1:]:
        with suppress(OSError):
            if os.path.samestat(layer.path.stat(), base):
                return True
    return False


def _in(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        for number, entry in enumerate(os.scandir(folder)):
            if number == _MOST_FILES:
                return
            yield Path(entry.path)


def _on(path: Path, base: os.stat_result) -> bool:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False  # a link's image is found where it is
        backing = read_header(path).backing
        below = backing_path(path, backing) if backing else None
        return below is not None and os.path.samestat(below.stat(), base)
    except (OSError, ValueError):
        return False
