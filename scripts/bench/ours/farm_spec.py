"""The machine of the farm metrics: the smallest board, which stands still and has no guest."""

from __future__ import annotations

import attrs

from qmpkit import MachineSpec

SPEC = MachineSpec(name="bench", machine="microvm", accel="tcg", memory="64MiB")


def spec(number: int) -> MachineSpec:
    """One of many."""
    return attrs.evolve(SPEC, name=f"bench{number}")
