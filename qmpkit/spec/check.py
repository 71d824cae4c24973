"""Faults that take more than one field to see. All of them are found, not only the first."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from functools import cache
from typing import Any

import attrs
import cattrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.addresses import port_problem
from qmpkit.spec.block import Disk, disk_faults, disk_node, iothreads_of
from qmpkit.spec.board_faults import board_faults
from qmpkit.spec.boards import family_of
from qmpkit.spec.chardev import serial_faults
from qmpkit.spec.convert import structure, unstructure
from qmpkit.spec.cpu import cpu_faults
from qmpkit.spec.device_ids import device_ids
from qmpkit.spec.faults import collect
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.layout import layout_of
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.memory import memory_faults
from qmpkit.spec.names import file_node, flash_node, mac_of, machine_name_problem
from qmpkit.spec.network import UserNic, nic_faults
from qmpkit.spec.numa import numa_faults
from qmpkit.spec.options import text_problem
from qmpkit.spec.peripherals import Share, VirtioMem, device_faults
from qmpkit.spec.resources import resource_faults
from qmpkit.spec.sizes import Size, format_size
from qmpkit.spec.units import unit_faults
from qmpkit.spec.well_typed import is_well_typed

__all__ = ["check_types", "faults_of", "type_faults", "validate"]

_OPTION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_VARIABLE_NAME = re.compile(r"[^=\0]+")
_OWN_OPTIONS = {
    "memory-backend": "memory",
    "type": "machine",
    "accel": "accel",
    "kernel": "kernel",
    "pflash0": "firmware",
    "pflash1": "firmware",
    "firmware": "firmware",
}
_AHCI_PORTS = 6
# Not "firmware" itself: a BIOS file is an argument of its own, of any bytes.
_IN_JSON = ("disks", "nics", "devices", "memory", "firmware.code", "firmware.vars")


def validate(spec: MachineSpec) -> None:
    """Raise `SpecInvalid` with every fault of `spec`; return when it has none.

    A spec written in Python may hold values of the wrong type, which would make nonsense
    of everything else: those are looked for first. It takes about 0.1 ms.
    """
    check_types(spec)
    if faults := faults_of(spec):
        raise SpecInvalid(faults, f"machine {spec.name!r}")


def check_types(spec: object) -> None:
    """Raise `SpecInvalid` with all of `type_faults`, before anybody takes *spec* for a machine."""
    if faults := type_faults(spec):
        raise SpecInvalid(faults, f"machine {spec.name!r}" if isinstance(spec, MachineSpec) else "")


def type_faults(spec: object) -> tuple[Fault, ...]:
    """Fields that hold what a file could not say there: a number for a name, "qcov2"."""
    if not isinstance(spec, MachineSpec):
        hint = "load_profile reads one from a file"
        return (Fault("", f"a machine is a MachineSpec, not {spec!r}", hint),)
    if is_well_typed(spec):
        return ()
    try:
        structure(unstructure(spec))
    except cattrs.BaseValidationError as error:
        return tuple(finding.fault for finding in collect(error))
    return ()


def faults_of(spec: MachineSpec) -> tuple[Fault, ...]:
    """Every fault of a well-typed spec that can be seen without looking at the host."""
    found = [*_head_faults(spec), *_text_faults(spec)]
    found += cpu_faults(spec.cpu)
    found += memory_faults(spec.memory)
    found += numa_faults(spec.numa, spec.memory, spec.cpu.maxcpus or spec.cpu.cpus)
    found += resource_faults(spec.resources, iothreads_of(spec.disks))
    for number, disk in enumerate(spec.disks):
        found += disk_faults(disk, f"disks[{number}]")
    for number, nic in enumerate(spec.nics):
        found += nic_faults(nic, f"nics[{number}]")
    for number, device in enumerate(spec.devices):
        found += device_faults(device, f"devices[{number}]")
    found += serial_faults(spec.serials)
    found += _names_twice(spec)
    found += _nodes_twice(spec)
    found += _files_twice(spec)
    found += _boot_twice(spec)
    found += _macs_twice(spec)
    found += _ports_twice(spec)
    found += _share_faults(spec)
    found += _balloon_faults(spec)
    found += _growing_faults(spec)
    found += _slot_faults(spec)
    found += board_faults(spec)
    return tuple(found)


def _head_faults(spec: MachineSpec) -> Iterator[Fault]:
    if problem := machine_name_problem(spec.name):
        yield Fault("name", problem)
    for name in spec.machine_options:
        if name in _OWN_OPTIONS:
            yield Fault(f"machine_options.{name}", f"is set by {_OWN_OPTIONS[name]!r}")
        elif not _OPTION_NAME.fullmatch(name):
            yield Fault("machine_options", f"{name!r} is not the name of an option")
    yield from _empty_paths(spec)
    yield from _identity_faults(spec)


def _identity_faults(spec: MachineSpec) -> Iterator[Fault]:
    for name, value in (("uuid", spec.uuid), ("vmgenid", spec.vmgenid)):
        if value is not None and not (name == "vmgenid" and value == "auto") and not _uuid(value):
            yield Fault(name, f"{value!r} is not a UUID")
    if spec.vsock is not None and not 3 <= spec.vsock < 2**32 - 1:
        yield Fault("vsock", f"a guest's CID is from 3 to 4294967294, not {spec.vsock}")
    if spec.run_as == "":
        yield Fault("run_as", "the user's name is empty")
    for name in spec.env:
        if not _VARIABLE_NAME.fullmatch(name):
            yield Fault("env", f"{name!r} cannot be the name of a variable")


def _uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def _empty_paths(spec: MachineSpec) -> Iterator[Fault]:
    paths = {"qemu": spec.qemu}
    if not isinstance(spec.firmware, Uefi):
        paths["firmware"] = spec.firmware
    if spec.kernel is not None:
        if spec.kernel.initrd is not None and spec.kernel.image is None:
            yield Fault("kernel.image", "is missing: an initrd is of no use without a kernel")
        paths |= {"kernel.image": spec.kernel.image, "kernel.initrd": spec.kernel.initrd}
    for where, path in paths.items():
        if path == "":
            yield Fault(where, "the path is empty")


def _text_faults(spec: MachineSpec) -> Iterator[Fault]:
    """No argument of a program can hold a NUL, and QEMU's JSON not every character."""
    if all(text.isascii() and "\0" not in text for text in _texts(spec)):
        return  # as nearly always; to say where a text stands takes five times as long
    for where, text in _strings(attrs.asdict(spec), ""):
        if "\0" in text:
            yield Fault(where, "holds a NUL character")
        elif where.startswith(_IN_JSON) and (problem := text_problem(text)):
            yield Fault(where, f"{text!r}: {problem}")


def _texts(spec: MachineSpec) -> Iterator[str]:
    """Every text in it, but for the keys of tables."""
    left: list[Any] = [spec]
    for value in left:  # which grows meanwhile
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | tuple):
            left += value
        elif isinstance(value, dict):
            left += value.values()
        else:
            kind: Any = type(value)
            left += (getattr(value, name) for name in _fields(kind))


@cache
def _fields(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in attrs.fields(kind)) if attrs.has(kind) else ()


def _strings(value: object, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, f"{where}.{key}" if where else key)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _strings(item, f"{where}[{number}]")


def _names_twice(spec: MachineSpec) -> Iterator[Fault]:
    """Devices share one namespace, whatever they are."""
    first: dict[str, str] = {}
    for name, where in device_ids(spec):
        if name in first:
            yield Fault(where, f"{name!r} is already the name of {first[name]}")
        first.setdefault(name, where)


def _nodes_twice(spec: MachineSpec) -> Iterator[Fault]:
    first: dict[str, str] = {}
    if isinstance(spec.firmware, Uefi):
        chips = (flash_node(0), flash_node(1))
        first = {name: "firmware" for chip in chips for name in (chip, f"{chip}-file")}
    for number, disk in enumerate(spec.disks):
        where = f"disks[{number}]"
        for node in (file_node(disk.id), disk_node(disk)):
            if node in first:
                yield Fault(
                    f"{where}.node" if disk.node else f"{where}.id",
                    f"node name {node!r} is already used by {first[node]}",
                )
            first.setdefault(node, where)


def _files_twice(spec: MachineSpec) -> Iterator[Fault]:
    """Two writers destroy an image; QEMU's lock would say so much later and less clearly."""
    first: dict[str, tuple[str, Disk]] = {}
    for number, disk in enumerate(spec.disks):
        if disk.is_empty:
            continue
        where = f"disks[{number}]"
        other = first.setdefault(disk.file, (where, disk))
        if other[1] is not disk and not (disk.is_readonly and other[1].is_readonly):
            yield Fault(f"{where}.file", f"{disk.file!r} is already the image of {other[0]}")
        if isinstance(spec.firmware, Uefi) and spec.firmware.vars == disk.file:
            yield Fault(f"{where}.file", f"{disk.file!r} is already firmware.vars")


def _boot_twice(spec: MachineSpec) -> Iterator[Fault]:
    first: dict[int, str] = {}
    for name, items in (("disks", spec.disks), ("nics", spec.nics)):
        for number, item in enumerate(items):
            where = f"{name}[{number}].boot"
            if item.boot is None:
                continue
            if item.boot in first:
                yield Fault(where, f"{item.boot} is already the place of {first[item.boot]}")
            first.setdefault(item.boot, where)


def _macs_twice(spec: MachineSpec) -> Iterator[Fault]:
    first: dict[str, str] = {}
    for number, nic in enumerate(spec.nics):
        mac = (nic.mac or mac_of(spec.name, nic.id)).lower()
        where = f"nics[{number}]"
        if mac in first:
            yield Fault(f"{where}.mac", f"{mac!r} is already the address of {first[mac]}")
        first.setdefault(mac, where)


def _ports_twice(spec: MachineSpec) -> Iterator[Fault]:
    first: dict[tuple[str, str, int], str] = {}
    for number, nic in enumerate(spec.nics):
        for place, forward in enumerate(nic.forwards if isinstance(nic, UserNic) else ()):
            where = f"nics[{number}].forwards[{place}]"
            key = (forward.proto, forward.address, forward.host)
            if forward.host and key in first:
                message = f"port {forward.host} is already forwarded by {first[key]}"
                yield Fault(f"{where}.host", message)
            first.setdefault(key, where)


def _growing_faults(spec: MachineSpec) -> Iterator[Fault]:
    memory = spec.memory
    taken = memory.total
    for number, device in enumerate(spec.devices):
        if not isinstance(device, VirtioMem):
            continue
        where, taken = f"devices[{number}]", Size(taken + device.size)
        if memory.maxmem is None:
            hint = 'memory.slots = 1, memory.maxmem = "16GiB"'
            yield Fault(where, "there is no room for it beside the RAM", hint)
        elif taken > memory.maxmem:
            message = f"with it the memory comes to {format_size(taken)}, more than memory.maxmem"
            yield Fault(f"{where}.size", message)
        if device.node is not None and not 0 <= device.node < max(1, len(spec.numa)):
            yield Fault(f"{where}.node", f"there is no node {device.node} in numa")


def _balloon_faults(spec: MachineSpec) -> Iterator[Fault]:
    for name in ("free_page_reporting", "deflate_on_oom"):
        if getattr(spec.memory, name) and not spec.balloon:
            yield Fault(f"memory.{name}", "is the balloon's, and there is none", "balloon = true")
    if spec.memory.free_page_reporting and spec.memory.is_view:
        message = f"would cut what the guest does not use out of {spec.memory.mem_path!r}"
        yield Fault("memory.free_page_reporting", message, "memory.share = true, or no mem_path")


def _share_faults(spec: MachineSpec) -> Iterator[Fault]:
    first: dict[str, str] = {}
    for number, device in enumerate(spec.devices):
        if not isinstance(device, Share):
            continue
        where = f"devices[{number}]"
        if not spec.memory.share:
            message = "virtiofsd reads the guest's memory, which is not shared"
            yield Fault(where, message, "memory.share = true")
        if device.tag in first:
            yield Fault(f"{where}.tag", f"{device.tag!r} is already the tag of {first[device.tag]}")
        first.setdefault(device.tag, where)


def _slot_faults(spec: MachineSpec) -> Iterator[Fault]:
    if family_of(spec.machine) is None:
        return
    ide = [n for n, disk in enumerate(spec.disks) if disk.interface == "cdrom"]
    if len(ide) > _AHCI_PORTS and family_of(spec.machine) == "q35":
        room = f"q35 has {_AHCI_PORTS} SATA ports, these are {len(ide)} cdrom drives"
        yield Fault(f"disks[{ide[_AHCI_PORTS]}]", f"too many devices for the slots: {room}")
    for number, port in enumerate(spec.last_ports):
        if problem := port_problem(port):
            yield Fault(f"last_ports[{number}]", problem)
    yield from unit_faults(spec)
    yield from layout_of(spec).faults
