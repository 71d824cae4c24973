"""The files of a template: frozen when it is saved, looked at whenever it is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import trio

from qmpkit.images.hashing import digest_of
from qmpkit.images.tool import Asked
from qmpkit.templates.manifest import SavedFile

__all__ = ["Told", "flaws_at_a_glance", "flaws_by_size", "flaws_in_full", "frozen"]

_SAMPLES, _SAMPLE = 16, 64 << 10
_MODE = 0o444


async def frozen(folder: Path, name: str, asked: Asked, *, ram: bool = False) -> SavedFile:
    """Make the file read-only and safe on disk, and know it again by what this tells.

    *ram*: it is what QEMU is to map.  Raises ImageFailed in the name of *asked*.
    """
    path = folder / name
    digest = await digest_of(path, asked, safe=True)

    def finish() -> SavedFile:
        path.chmod(_ram_mode() if ram else _MODE)
        found = path.stat()
        return SavedFile(
            name=name,
            length=found.st_size,
            mtime_ns=found.st_mtime_ns,
            checksum=digest.checksum,
            sample=_sampled(path),
        )

    try:
        return await trio.to_thread.run_sync(finish)
    except OSError as error:
        raise asked.failed_by(error) from error


def _ram_mode() -> int:
    """Its owner's alone, as it may be in a folder that all can read."""
    # QEMU before 8.2 opens a RAM for writing also to map it private, which only root always may.
    return stat.S_IRUSR | (stat.S_IWUSR if os.geteuid() else 0)


def _sampled(path: Path) -> str:
    """The checksum of some pieces from the beginning to the end; blocking."""
    import xxhash  # whoever has no templates needs it not

    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        for offset in _offsets(os.fstat(file.fileno()).st_size):
            digest.update(os.pread(file.fileno(), _SAMPLE, offset))
    return f"xxh3_128:{digest.hexdigest()}"


def _offsets(length: int) -> Iterator[int]:
    step = max((length - _SAMPLE) // (_SAMPLES - 1), _SAMPLE)
    yield from range(0, max(length, 1), step)


def flaws_by_size(folder: Path, files: Iterable[SavedFile]) -> list[str]:
    """What is wrong as far as the size of each file tells, of which nothing is read; blocking."""
    found = ((file.name, _flaw_of_size(folder / file.name, file)) for file in files)
    return [f"{name}: {what}" for name, what in found if what]


def flaws_at_a_glance(
    folder: Path, files: Iterable[SavedFile]
) -> tuple[list[str], list[SavedFile]]:
    """What is wrong by size and samples, and the files whose time tells that more is to be read.

    Blocking: a megabyte a file.
    """
    flaws: list[str] = []
    doubtful: list[SavedFile] = []
    for file in files:
        if what := _flaw(folder / file.name, file):
            flaws.append(f"{file.name}: {what}")
        elif (folder / file.name).stat().st_mtime_ns != file.mtime_ns:
            doubtful.append(file)
    return flaws, doubtful


def _flaw(path: Path, file: SavedFile) -> str:
    try:
        return _flaw_of_size(path, file) or ("" if _sampled(path) == file.sample else _CHANGED)
    except OSError as error:
        return error.strerror or str(error)


def _flaw_of_size(path: Path, file: SavedFile) -> str:
    try:
        length = path.stat().st_size
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return error.strerror or str(error)
    return "" if length == file.length else f"it has {length} bytes instead of {file.length}"


_CHANGED = "its checksum is another one: its content has changed"


Told = Callable[[float], object]
"""Is told how much is done, 0.0 to 1.0; must not block."""


async def flaws_in_full(
    folder: Path, files: Collection[SavedFile], progress: Told | None = None
) -> list[str]:
    """What is wrong with these files, every byte of which is read."""
    flaws: list[str] = []
    total, done = sum(file.length for file in files) or 1, 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done / total, 1.0))

    for file in files:
        path = folder / file.name
        what = await trio.to_thread.run_sync(_flaw, path, file)
        if not what:
            digest = await digest_of(path, Asked("read", path), read, safe=False)
            what = "" if digest.checksum == file.checksum else _CHANGED
        if what:
            flaws.append(f"{file.name}: {what}")
    return flaws
