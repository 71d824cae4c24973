"""The RAM that a machine was saved with, which fits its disks only as they were left."""

from __future__ import annotations

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.machine import MachineSpec

__all__ = ["goes_on_saved", "refuse_saved"]


def goes_on_saved(spec: MachineSpec) -> bool:
    """Whether it is saved; what goes on from a snapshot's memory can go back to that again."""
    memory = spec.resume_from
    return memory is not None and all(it.memory != memory for it in spec.snapshots)


def refuse_saved(spec: MachineSpec, where: str) -> None:
    """Raise SpecInvalid, of *where*, when a write to its images would cost it its RAM."""
    if goes_on_saved(spec):
        message = "the machine is saved, and its RAM fits its disks as they are"
        hint = "start it, or discard what it was saved with (qmpkit discard)"
        raise SpecInvalid([Fault(where, message, hint)], f"machine {spec.name!r}")
