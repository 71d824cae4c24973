"""The RAM of a machine, always an explicit backend.

A state saved without an explicit backend cannot be restored into a machine with
one, so there is one from the first start on, under one name for ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.names import RAM_ID
from qmpkit.spec.options import Json, keyvals
from qmpkit.spec.sizes import GIB, KIB, MIB, Size, format_size, to_bytes

__all__ = ["Memory", "memory_backend", "memory_faults", "memory_option", "to_memory"]

_GRAIN = 8 * KIB
"""QEMU rounds `-m` up to this and then finds that the backend has another size."""

_SLOT_LIMIT = 256


def _size(value: str | int) -> Size:
    return to_bytes(value, "memory.size")


def _maxmem(value: str | int | None) -> Size | None:
    return None if value is None else to_bytes(value, "memory.maxmem")


def _optional_path(value: str | os.PathLike[str] | None) -> str | None:
    return None if value is None else os.fspath(value)


@attrs.frozen
class Memory:
    """`size` bytes (or "1GiB") at start; with `slots` and `maxmem`, room for hotplug.

    `mem_path` puts the RAM into that file; with `share` what the guest writes is
    seen by others that map it (and stays in the file), without it the file is only
    read: copy-on-write. `share` without `mem_path` uses an anonymous memfd.
    `prealloc` touches all of it at start (50 to 100 ms a GiB).
    """

    size: Size = attrs.field(default=Size(512 * MIB), converter=_size)
    maxmem: Size | None = attrs.field(default=None, converter=_maxmem)
    slots: int = 0
    mem_path: str | None = attrs.field(default=None, converter=_optional_path)
    share: bool = False
    prealloc: bool = False


def to_memory(value: Memory | str | int) -> Memory:
    """A bare size is a memory of that size."""
    return value if isinstance(value, Memory) else Memory(value)


def memory_faults(memory: Memory) -> Iterator[Fault]:
    """Everything that contradicts itself in `memory`."""
    if memory.size < MIB:
        yield Fault("memory.size", f"{format_size(memory.size)} is less than 1MiB")
    elif memory.size % _GRAIN:
        yield Fault("memory.size", f"{format_size(memory.size)} is not a multiple of 8KiB")
    if memory.mem_path == "":
        yield Fault("memory.mem_path", "the path is empty")
    if memory.maxmem is None and not memory.slots:
        return
    if memory.maxmem is None or not memory.slots:
        missing = "maxmem" if memory.maxmem is None else "slots"
        yield Fault(f"memory.{missing}", "slots and maxmem are only of use together")
    elif memory.maxmem <= memory.size:
        yield Fault("memory.maxmem", f"{format_size(memory.maxmem)} leaves no room above size")
    elif memory.maxmem % _GRAIN:
        yield Fault("memory.maxmem", f"{format_size(memory.maxmem)} is not a multiple of 8KiB")
    if not 0 <= memory.slots <= _SLOT_LIMIT:
        yield Fault("memory.slots", f"must be from 0 to {_SLOT_LIMIT}, not {memory.slots}")


def memory_backend(memory: Memory) -> Json:
    """The `-object` of the machine's RAM."""
    backend: dict[str, object] = {"id": RAM_ID, "size": int(memory.size)}
    if memory.mem_path is not None:
        backend = {"qom-type": "memory-backend-file", **backend, "mem-path": memory.mem_path}
        # Said even when off: whether a clone may write into its template hangs on it.
        backend["share"] = memory.share
    elif memory.share:
        backend = {"qom-type": "memory-backend-memfd", **backend, "share": True}
    else:
        backend = {"qom-type": "memory-backend-ram", **backend}
    if memory.prealloc:
        backend["prealloc"] = True
    return backend


def memory_option(memory: Memory) -> str:
    """`-m`, in the largest unit that is exact."""
    pairs: list[tuple[str, str | int]] = [("size", _short(memory.size))]
    if memory.maxmem is not None:
        pairs += [("slots", memory.slots), ("maxmem", _short(memory.maxmem))]
    return keyvals("", pairs)


def _short(size: int) -> str:
    for unit, letter in ((GIB, "G"), (MIB, "M")):
        if size % unit == 0:
            return f"{size // unit}{letter}"
    return f"{size // KIB}K"
