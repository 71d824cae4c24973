"""Modules of memory that are plugged beside the RAM that a machine has at its start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.given import items_of
from qmpkit.spec.names import id_problem, module_id
from qmpkit.spec.options import Json
from qmpkit.spec.sizes import MIB, Size, format_size, to_bytes

__all__ = ["DIMM_DRIVER", "Dimm", "dimm_device", "dimm_faults", "to_dimms"]

DIMM_DRIVER = "pc-dimm"

_BLOCK = 128 * MIB
"""What Linux adds at once; of one that is no multiple of it, a guest sees nothing."""


def _size(value: str | int) -> Size:
    return to_bytes(value, "memory.dimms.size")


@attrs.frozen(kw_only=True)
class Dimm:
    """A module of `size` bytes (or "1GiB"), a multiple of 128MiB; it takes one of `slots`.

    `id`: filled in when left out (`dimm0`).  `node`: the guest's NUMA node that it belongs to,
    of those in `numa` (default: 0).  `address`: where it lies in the guest's memory; written by
    hotplug, as a machine that is started again must have it at the same place.
    """

    size: Size = attrs.field(converter=_size)
    id: str = ""
    node: int | None = None
    address: int | None = None


def to_dimms(value: Iterable[Dimm]) -> tuple[Dimm, ...]:
    """Fill in missing ids, skipping those in use."""
    dimms = items_of(value, "memory.dimms", 'Dimm(size="1GiB")', (Dimm,))
    used = {dimm.id for dimm in dimms}
    named: list[Dimm] = []
    for dimm in dimms:
        if not dimm.id:
            number = next(n for n in range(len(dimms) + len(used)) if f"dimm{n}" not in used)
            dimm = attrs.evolve(dimm, id=f"dimm{number}")
            used.add(dimm.id)
        named.append(dimm)
    return tuple(named)


def dimm_device(dimm: Dimm, *, nodes: bool) -> Json:
    """The argument of `-device` (and `device_add`); *nodes*: whether the guest sees some."""
    device: dict[str, object] = {"driver": DIMM_DRIVER, "id": dimm.id, "memdev": module_id(dimm.id)}
    if nodes:
        device["node"] = dimm.node or 0
    if dimm.address is not None:
        device["addr"] = dimm.address
    return device


def dimm_faults(dimms: tuple[Dimm, ...], slots: int, room: int) -> Iterator[Fault]:
    """Everything that contradicts itself; *room*: bytes between `size` and `maxmem`."""
    for number, dimm in enumerate(dimms):
        where = f"memory.dimms[{number}]"
        if problem := id_problem(dimm.id):
            yield Fault(f"{where}.id", problem)
        if dimm.size < _BLOCK or dimm.size % _BLOCK:
            message = f"{format_size(dimm.size)} is no multiple of 128MiB, which guests add at once"
            yield Fault(f"{where}.size", message)
    if len(dimms) > slots:
        modules = f"{len(dimms)} module{'s' if len(dimms) > 1 else ''}"
        hint = f"remove one, or start the machine with slots = {max(8, len(dimms))} and maxmem"
        yield Fault("memory.slots", f"{modules} of memory do not fit in {slots} slots", hint)
    elif (total := sum(dimm.size for dimm in dimms)) > room:
        message = f"leaves room for {format_size(room)}, and the modules have {format_size(total)}"
        yield Fault("memory.maxmem", message, "remove one, or start the machine with more")
