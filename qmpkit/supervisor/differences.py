"""What a machine that was found has and its spec does not say, or the reverse.  Pure."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from qmpkit.machine.drives import drives_of
from qmpkit.operations.block.graph import FDSETS, file_of
from qmpkit.spec.block import Disk, disk_node
from qmpkit.spec.cpu_places import cpu_id
from qmpkit.spec.machine import MachineSpec

__all__ = ["device_differences", "disk_differences"]


def disk_differences(spec: MachineSpec, blocks: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each disk that is not as *spec* says; *blocks*: what `query-block` replies.

    A machine that is started again from a spec that names another layer than its guest has
    written to has lost what was written.
    """
    found = {device: block.get("inserted", {}) for device, block in drives_of(blocks)}
    for disk in spec.disks:
        if (inserted := found.pop(disk.id, None)) is None:
            yield f"disk {disk.id!r} ({disk.file}) is not there, and its spec says that it is"
        elif why := _why(disk, inserted):
            yield why
    for device, inserted in found.items():
        if inserted:
            yield f"disk {device!r} ({inserted.get('file')}) is there, and its spec does not say so"


def device_differences(spec: MachineSpec, there: Collection[str]) -> Iterator[str]:
    """A sentence for each NIC, module of memory, added processor or other device of *spec*
    that is not among those that are *there*.

    Those that somebody else has plugged are nobody's to judge: `extra_args` may have made them.
    """
    wanted = [("NIC", nic.id) for nic in spec.nics]
    wanted += [("device", device.id) for device in spec.devices]
    wanted += [("memory", dimm.id) for dimm in spec.memory.dimms]
    wanted += [("processor", cpu_id(number)) for number in spec.cpu.added]
    for name, ident in wanted:
        if ident not in there:
            yield f"{name} {ident!r} is not there, and its spec says that it is"


def _same(disk: Disk, node: str, file: str) -> bool:
    """By the file, where QEMU tells it: after a merge the node may have a name of QEMU's own."""
    if file.startswith(("json:", FDSETS)):
        return node == disk_node(disk)
    return file_of({"file": file}) == os.fspath(disk.file)


def _why(disk: Disk, inserted: Mapping[str, Any]) -> str:
    node, file = inserted.get("node-name", ""), inserted.get("file", "")
    if disk.is_empty:
        return f"drive {disk.id!r} has {file} in it, and is empty by its spec" if inserted else ""
    if not inserted or not _same(disk, node, file):
        told = f"is on node {node!r} ({file})" if inserted else "is empty"
        return (
            f"disk {disk.id!r} {told}, and its spec says {disk_node(disk)!r} ({disk.file}): "
            "a start from that spec would not see what was written since"
        )
    return ""
