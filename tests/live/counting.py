"""A guest that shows what a moment of it is: it counts in its memory."""

from __future__ import annotations

from pathlib import Path

import attrs

import qmpkit
from qmpkit import Disk, MachineSpec
from qmpkit.operations._protocols import Monitor
from qmpkit.testing import guests
from tests.live.blocks import bare

__all__ = ["counted", "counting", "counting_template", "counts"]


def counting(qemu: str, folder: Path, *formats: str) -> MachineSpec:
    """A guest that counts in its memory, with disks."""
    guests.build_kvm_tiny()
    tiny = qmpkit.load_profile("kvm-tiny")
    return attrs.evolve(
        tiny, name="bare", qemu=qemu, accel="tcg", disks=bare(qemu, folder, *formats).disks
    )


async def counts(vm: qmpkit.VM) -> None:
    """Wait until the guest has counted for a while."""
    await vm.console.expect("...")


async def counting_template(qemu: str, folder: Path, *more: Disk) -> qmpkit.Template:
    """The smallest guest, with a disk, so that each of its clones has an overlay; and *more*."""
    guests.build_kvm_tiny()
    disk = Disk(folder / "data.qcow2", format="qcow2", make="1GiB")
    spec = attrs.evolve(
        qmpkit.load_profile("kvm-tiny"), qemu=qemu, accel="tcg", machine="q35", disks=[disk, *more]
    )
    return await qmpkit.make_template(spec, folder / "saved", counts, twins=True)


async def counted(monitor: Monitor) -> int:
    """How far the guest *kvm-tiny* of that monitor has counted."""
    command = f"xp /1gx {guests.COUNTER_ADDRESS:#x}"
    reply = await monitor.execute("human-monitor-command", {"command-line": command})
    return int(str(reply).split(":")[1], 16)
