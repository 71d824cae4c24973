"""The guest's drives as QEMU tells of them, and what it may do on each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from qmpkit.spec.limits import IoLimits, throttle_of
from qmpkit.spec.machine import MachineSpec

__all__ = ["drives_of", "limit_drive", "limit_drives"]

_OURS = "/machine/peripheral/"


class _Commanded(Protocol):
    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, /) -> Any: ...


def drives_of(blocks: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each drive that has an id, by that, of the reply to `query-block`.  Pure.

    The board's own devices have none, and are found by their path; what is in a device of an
    id (a virtio device's inner half, the SCSI disk in a USB one) is that device's.
    """
    for block in blocks:
        where = block.get("qdev", "")
        device, _, inner = where.removeprefix(_OURS).partition("/")
        if device and (not inner or where.startswith(_OURS)):
            yield device, block


async def limit_drive(machine: _Commanded, drive: str, limits: IoLimits | None) -> None:
    """Have these bounds on the drive at the QOM path *drive* (`block_set_io_throttle`)."""
    await machine.execute("block_set_io_throttle", {"id": drive, **throttle_of(limits)})


async def limit_drives(machine: _Commanded, spec: MachineSpec) -> None:
    """Have the bounds of *spec* on the drives of a machine whose guest has not run yet.

    By command, not by a node of its own on the command line: one above a disk's layers would
    be in the way of everything that changes these.
    """
    wanted = {disk.id: disk.limits for disk in spec.disks if disk.limits and not disk.is_empty}
    if wanted:
        drives = dict(drives_of(await machine.execute("query-block")))
        for disk, limits in wanted.items():
            await limit_drive(machine, drives[disk]["qdev"], limits)
