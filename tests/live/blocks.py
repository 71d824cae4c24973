"""What the tests of disks share: patterns written through a machine, and read from its images."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import trio

from qmpkit import Disk, MachineSpec
from qmpkit.images import check
from qmpkit.vm import VM

__all__ = ["BLOCK", "bare", "holds", "nothing_left", "qemu_io", "told", "write"]

BLOCK = 65536


def bare(qemu: str, folder: Path, *formats: Any) -> MachineSpec:
    """A machine without a guest, with a disk of 16 MiB in each of *formats*."""
    disks = [
        Disk(str(folder / f"{number}.{format}"), format=format, make="16MiB")
        for number, format in enumerate(formats)
    ]
    return MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB", disks=disks)


async def write(vm: VM, disk: str, block: int, pattern: int, *, count: int = 1) -> None:
    """Write blocks as the guest would, through the device, and flush them."""
    where = f"-d /machine/peripheral/{disk}/virtio-backend"
    for command in (f"write -P {pattern} {block * BLOCK} {count * BLOCK}", "flush"):
        line = f'qemu-io {where} "{command}"'
        await vm.execute("human-monitor-command", {"command-line": line})


async def holds(file: str, format: str, blocks: dict[int, int]) -> None:
    """The image that nobody has open holds these patterns, and is sound."""
    reads = [f"read -P {pattern} {block * BLOCK} {BLOCK}" for block, pattern in blocks.items()]
    done = await qemu_io(file, format, *reads)
    assert done.returncode == 0, done.stdout
    assert b"verification failed" not in done.stdout, (file, done.stdout)
    if format == "qcow2":
        report = await check(file, format=format)
        assert report.ok and not report.leaks


async def qemu_io(
    file: str, format: str, *commands: str, readonly: bool = True
) -> subprocess.CompletedProcess[bytes]:
    """Run commands of qemu-io on an image that nobody has open."""
    words = ["qemu-io", "-f", format, *(["-r"] if readonly else [])]
    for command in commands:
        words += ["-c", command]
    return await trio.run_process([*words, file], capture_stdout=True, check=False)


async def told(vm: VM, *fields: str, disk: str = "disk0") -> list[int]:
    """What QEMU has as the bounds of a disk."""
    for block in await vm.execute("query-block"):
        if f"/{disk}/" in f"/{block['qdev']}/":
            return [block["inserted"].get(field, 0) for field in fields]
    raise AssertionError(f"there is no {disk}")


async def nothing_left(vm: VM) -> None:
    """No job, and no node but those of the disks' own layers."""
    assert await vm.execute("query-jobs") == []
    nodes = await vm.execute("query-named-block-nodes", {"flat": True})
    wanted = {
        name
        for disk in vm.spec.disks
        for layer in await vm.disks.chain(disk.id)
        for name in (layer.node, layer.file_node)
    }
    assert {node["node-name"] for node in nodes} == wanted
