"""The machine that the group `migrate` moves: it counts, and has two disks."""

from __future__ import annotations

from typing import Any

from qmpkit import Cpu, Disk, MachineSpec


def spec_of(load: dict[str, Any]) -> MachineSpec:
    """It, as *load* says."""
    return MachineSpec(
        name="mover",
        accel="tcg",
        cpu=Cpu(model="qemu64"),
        memory=f"{load['memory']}KiB",
        firmware=load["firmware"],
        disks=[Disk(image, format="qcow2") for image in load["images"]],
    )
