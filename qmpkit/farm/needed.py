"""The files that machines need, and those that can go.  Blocking."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from qmpkit.errors import ImageInUse
from qmpkit.host.chain import walk_chain
from qmpkit.host.holders import holders_of, image_locked
from qmpkit.spec.block import Overlay
from qmpkit.spec.machine import MachineSpec

__all__ = ["Needed", "deletable", "unlink_all"]

_FileId = tuple[int, int]


class Needed:
    """The files of machines, with every base of their disks, by whatever name.

    A machine's are looked at once, and again when its spec is another one.
    """

    def __init__(self) -> None:
        self._specs: dict[str, MachineSpec] = {}
        self._files: dict[str, set[str | _FileId]] = {}
        self._count: Counter[str | _FileId] = Counter()

    def look(self, machines: Mapping[str, MachineSpec]) -> None:
        """Have it be of these, by name, and of no others."""
        for name in self._specs.keys() - machines.keys():
            self._drop(name)
        for name, spec in machines.items():
            if self._specs.get(name) is not spec:
                self._drop(name)
                names = set(_with_bases(spec))
                self._specs[name] = spec
                self._files[name] = {*names, *filter(None, map(_identity, names))}
                self._count.update(self._files[name])

    def _drop(self, name: str) -> None:
        self._specs.pop(name, None)
        self._count.subtract(self._files.pop(name, ()))

    def __contains__(self, file: str) -> bool:
        identity = _identity(file)
        return self._count[file] > 0 or (identity is not None and self._count[identity] > 0)


def deletable(files: Sequence[str], needed: Needed) -> list[str]:
    """Those of *files* that nobody needs.

    Raises ImageInUse for one that a QEMU has open which is not ours: another farm's, say.
    """
    going = [file for file in files if file not in needed]
    for file in going:
        with suppress(FileNotFoundError):
            if image_locked(file, for_writing=True):
                why = f"{', '.join(map(str, holders_of(file))) or 'another process'} has it open"
                raise ImageInUse(file, "delete", why, "stop that machine first")
    return going


def unlink_all(files: Iterable[str]) -> tuple[list[str], list[str]]:
    """The files that are gone, and those that are not, each with why."""
    gone, left = [], []
    for file in files:
        try:
            Path(file).unlink()
            gone.append(file)
        except FileNotFoundError:
            pass
        except OSError as error:
            left.append(f"{file} ({error.strerror})")
    return gone, left


def _files(spec: MachineSpec) -> Iterator[str]:
    for disk in spec.disks:
        yield os.fspath(disk.file)
        if isinstance(disk.make, Overlay):
            yield os.fspath(disk.make.file)
    for point in spec.snapshots:
        yield from (*point.disks.values(), *point.beside)


def _with_bases(spec: MachineSpec) -> Iterator[str]:
    """`_files`, and what their images name: a layer that was put above has no `make`.

    Of a disk that is not there it is what its base names: by the next start it is made of that.
    """
    yield from _files(spec)
    for disk in spec.disks:
        if disk.is_empty:
            continue
        chain = walk_chain(Path(disk.file), str(disk.format))
        if not chain.layers and isinstance(disk.make, Overlay):
            chain = walk_chain(Path(disk.make.file), str(disk.make.format))
        yield from map(os.fspath, chain.files)


def _identity(file: str) -> _FileId | None:
    try:
        found = Path(file).stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
