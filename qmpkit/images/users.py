"""The overlays of an image, as far as they can be known.  Blocking."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from qmpkit.host.headers import backing_path, read_header

__all__ = ["overlays_of"]

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
