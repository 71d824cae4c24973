"""The ids of a machine's devices, which share one namespace whatever they are.  Pure."""

from __future__ import annotations

from collections.abc import Iterator

from qmpkit.spec.cpu_places import cpu_id
from qmpkit.spec.layout import AGENT, fixed_devices
from qmpkit.spec.machine import MachineSpec

__all__ = ["device_ids", "free_id"]

_ALWAYS = {AGENT: "agent", "panic0": "panic", "vmgenid0": "vmgenid"}


def device_ids(spec: MachineSpec) -> Iterator[tuple[str, str]]:
    """Each with the field that it comes from; those of QEMU's own devices first."""
    fixed = {name: where for name, where in fixed_devices(spec) if where != "devices"}
    yield from (fixed | _ALWAYS).items()
    yield from ((disk.id, f"disks[{n}].id") for n, disk in enumerate(spec.disks))
    yield from ((nic.id, f"nics[{n}].id") for n, nic in enumerate(spec.nics))
    yield from ((it.id, f"devices[{n}].id") for n, it in enumerate(spec.devices))
    yield from ((it.id, f"memory.dimms[{n}].id") for n, it in enumerate(spec.memory.dimms))
    yield from ((cpu_id(number), "cpu.added") for number in dict.fromkeys(spec.cpu.added))
    yield from ((serial.name, f"serials[{n}].name") for n, serial in enumerate(spec.serials))


def free_id(spec: MachineSpec, prefix: str, number: int = 0) -> str:
    """An id for one more device: *prefix* and the first number from *number* on that is free.

    The list that it is for sees its own ids alone, and somebody may have given another kind
    of device the next one.
    """
    used = {name for name, _ in device_ids(spec)}
    while (name := f"{prefix}{number}") in used:
        number += 1
    return name
