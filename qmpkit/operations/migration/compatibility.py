"""What stands in the way of a migration, found before anything is done to the machine.  Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qmpkit.errors import Fault
from qmpkit.machine.state import State
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.network import DgramNic, Nic, StreamNic, TapNic
from qmpkit.spec.peripherals import Share, UsbHost, Vfio, Vsock

__all__ = ["cpu_faults", "job_faults", "missing_files", "spec_faults", "state_faults"]

Words = Iterable[Mapping[str, Any]]
"""The CPUID registers that a processor shows its guest (`feature-words`)."""

_STAYS = {
    UsbHost: "a USB device of the host cannot follow",
    Vfio: "a PCI device of the host cannot follow",
    Share: "virtiofs has its state in another process",
    Vsock: "both ends would have the same cid on this host",
}
_ENDED = ("concluded", "null")


def spec_faults(spec: MachineSpec, cables: Collection[str] = ()) -> Iterator[Fault]:
    """What in a machine cannot be had twice on one host, or cannot move at all.

    *cables*: the NICs that have another one at the destination.
    """
    for number, nic in enumerate(spec.nics):
        if nic.id not in cables and (why := _cable_fault(nic)):
            hint = "unplug it meanwhile (`vm.nics.remove`)"
            yield Fault(f"nics[{number}]", f"{nic.id!r}: {why}", hint)
    for number, device in enumerate(spec.devices):
        if why := _STAYS.get(type(device), ""):
            hint = "unplug it meanwhile (`vm.devices.remove`)"
            yield Fault(f"devices[{number}]", f"{device.id!r}: {why}", hint)
    if spec.vsock is not None:
        yield Fault("vsock", _STAYS[Vsock], "leave it out")
    if spec.memory.share and spec.memory.mem_path is not None:
        message = f"both ends would have their RAM in {spec.memory.mem_path!r}"
        yield Fault("memory.mem_path", message, "share = false")


def _cable_fault(nic: Nic) -> str:
    match nic:
        case TapNic(ifname=str()):
            return f"QEMU has the device {nic.ifname!r} as long as it lives"
        case StreamNic(address=str()) if nic.server:
            return f"{nic.address!r} is listened at as long as QEMU lives"
        case StreamNic(address=str()):
            return f"the other end of {nic.address!r} would see its peer go"
        case DgramNic(local=str()):
            return f"{nic.local!r} is taken as long as QEMU lives"
    return ""


def state_faults(state: State) -> Iterator[Fault]:
    """Only a guest that runs, or that was paused by its owner, has a state worth moving."""
    if state not in (State.RUNNING, State.PAUSED):
        yield Fault("state", f"it is {state.value}", "have it running, or paused")


def job_faults(
    jobs: Iterable[Mapping[str, Any]],
    exports: Iterable[Mapping[str, Any]],
    migration: Mapping[str, Any],
) -> Iterator[Fault]:
    """What goes on in its QEMU (`query-jobs`, `query-block-exports`, `query-migrate`)."""
    for job in jobs:
        if job["status"] not in _ENDED:
            message = f"a {job['type']} ({job['id']}) is under way"
            yield Fault("jobs", message, "wait for its end, or cancel it")
    for export in exports:
        yield Fault("exports", f"{export['node-name']} is served", "end that backup first")
    for reason in migration.get("blocked-reasons", ()):
        yield Fault("", f"QEMU says: {reason}")


def cpu_faults(source: Words, destination: Words) -> Iterator[Fault]:
    """Processors that differ: a guest does not look a second time at what it has."""
    here, there = _by_register(source), _by_register(destination)
    differing = sorted(at for at in here | there if here.get(at, 0) != there.get(at, 0))
    if differing:
        message = f"the destination has another processor: {', '.join(differing)} differ"
        hint = 'start the machine with a named one: cpu.model = "Nehalem"'
        yield Fault("cpu.model", message, hint)


def _by_register(words: Words) -> dict[str, int]:
    return {_register(word): word["features"] for word in words}


def _register(word: Mapping[str, Any]) -> str:
    leaf = f"CPUID[{word['cpuid-input-eax']:#x}"
    if "cpuid-input-ecx" in word:
        leaf += f",{word['cpuid-input-ecx']:#x}"
    return f"{leaf}].{word['cpuid-register']}"


def missing_files(spec: MachineSpec, new: Collection[str] = ()) -> tuple[Fault, ...]:
    """The disks' images that are not there; those of *new* are to be made.  Blocking."""
    return tuple(
        Fault(f"disks[{number}].file", f"{disk.file!r} does not exist")
        for number, disk in enumerate(spec.disks)
        if disk.id not in new
        and not disk.is_empty
        and disk.driver == "file"
        and not Path(disk.file).exists()
    )
