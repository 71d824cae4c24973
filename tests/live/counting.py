"""A guest that shows what a moment of it is: it counts in its memory."""

from __future__ import annotations

from pathlib import Path

import attrs

import qmpkit
from qmpkit import MachineSpec
from qmpkit.operations._protocols import Monitor
from qmpkit.testing import guests
from tests.live.blocks import bare

__all__ = ["counted", "counting"]


def counting(qemu: str, folder: Path, *formats: str) -> MachineSpec:
    """A guest that counts in its memory, with disks."""
    guests.build_kvm_tiny()
    tiny = qmpkit.load_profile("kvm-tiny")
    return attrs.evolve(
        tiny, name="bare", qemu=qemu, accel="tcg", disks=bare(qemu, folder, *formats).disks
    )


async def counted(monitor: Monitor) -> int:
    """How far the guest *kvm-tiny* of that monitor has counted."""
    command = f"xp /1gx {guests.COUNTER_ADDRESS:#x}"
    reply = await monitor.execute("human-monitor-command", {"command-line": command})
    return int(str(reply).split(":")[1], 16)
