"""What a spec asks of a board that has no such thing."""

from __future__ import annotations

from collections.abc import Iterator

from qmpkit.errors import Fault
from qmpkit.spec.boards import ARCHITECTURES, Board, architectures_of, board_of, boards_of
from qmpkit.spec.firmware import Uefi, firmware_faults
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.peripherals import Rng, ScsiController, Vsock

__all__ = ["board_faults"]


def board_faults(spec: MachineSpec) -> Iterator[Fault]:
    """Everything that its board cannot give *spec*, or that there is no such board."""
    board = board_of(spec.machine, spec.arch)
    if board is None:
        yield from _no_board(spec)
        return
    if isinstance(spec.firmware, Uefi):
        yield from firmware_faults(spec.firmware, board)
        yield from _smm_faults(spec, spec.firmware, board)
    yield from _hotplug_faults(spec, board)
    yield from _device_faults(spec, board)


def _no_board(spec: MachineSpec) -> Iterator[Fault]:
    known = boards_of(spec.arch)
    if not known:
        yield Fault("arch", f"{spec.arch!r} is not supported", f"one of {', '.join(ARCHITECTURES)}")
    if not (others := architectures_of(spec.machine)):
        hint = " or ".join(known or boards_of())
        yield Fault("machine", f"{spec.machine!r} is not a machine type", hint)
    elif known:
        message = f"{spec.machine!r} is a board of {' and '.join(others)}, not of {spec.arch}"
        yield Fault("machine", message, " or ".join(known))


def _smm_faults(spec: MachineSpec, uefi: Uefi, board: Board) -> Iterator[Fault]:
    smm = spec.machine_options.get("smm", True)
    if uefi.secure_boot and board.secure_boot == "smm" and smm not in (True, "on"):
        yield Fault("machine_options.smm", "Secure Boot needs it", "leave it out")


def _hotplug_faults(spec: MachineSpec, board: Board) -> Iterator[Fault]:
    cpu, memory = spec.cpu, spec.memory
    if cpu.maxcpus is not None and cpu.maxcpus > cpu.cpus and not board.cpu_hotplug:
        yield Fault("cpu.maxcpus", f"{board.name} has no processor hotplug", "leave maxcpus out")
    if not memory.slots and memory.maxmem is None:
        return
    if board.memory_hotplug == "never":
        message = f"{board.name} has no memory hotplug"
        yield Fault("memory.slots", message, "leave slots and maxmem out")
    elif board.memory_hotplug == "uefi" and not isinstance(spec.firmware, Uefi):
        message = f"{board.name} has memory hotplug only with ACPI, which takes UEFI"
        yield Fault("memory.slots", message, 'firmware = "uefi"')


def _device_faults(spec: MachineSpec, board: Board) -> Iterator[Fault]:
    if sum(serial.kind == "isa" for serial in spec.serials) > board.serials:
        ports = f"{board.name} has {board.serials} serial port{'s' if board.serials > 1 else ''}"
        yield Fault("serials", ports, 'kind = "virtio" for the others')
    if not board.pci:
        if spec.root_ports:
            yield Fault("root_ports", f"{board.name} has no PCI", "leave root_ports out")
        if spec.display == "std":
            yield Fault("display", f"{board.name} has no VGA card")
    if spec.vmgenid is not None and not board.vmgenid:
        yield Fault("vmgenid", f"{board.name} does not show it to its guest")
    for number, disk in enumerate(spec.disks):
        lacking = (disk.interface in ("nvme", "usb") and not board.pci) or (
            disk.interface == "cdrom" and not board.ide
        )
        if lacking:
            better = "scsi-cdrom" if disk.interface == "cdrom" else "virtio-blk"
            message = f"{board.name} has no bus for {disk.interface}"
            yield Fault(f"disks[{number}].interface", message, f'interface = "{better}"')
    for number, device in enumerate(spec.devices):
        if not board.pci and not isinstance(device, Rng | Vsock | ScsiController):
            yield Fault(f"devices[{number}]", f"{board.name} has no PCI, which this kind needs")
    for number, nic in enumerate(spec.nics):
        if nic.model != "virtio-net" and not board.pci:
            yield Fault(f"nics[{number}].model", f"{board.name} has no bus for {nic.model}")
