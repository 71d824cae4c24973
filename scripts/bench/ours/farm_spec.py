"""The machine of the farm metrics: the smallest board, which stands still and has no guest."""

from __future__ import annotations

from typing import Literal

from qmpkit import MachineSpec


def spec(number: int, accel: Literal["kvm", "tcg"] = "tcg") -> MachineSpec:
    """One of many."""
    return MachineSpec(name=f"bench{number}", machine="microvm", accel=accel, memory="64MiB")
