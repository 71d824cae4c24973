"""The spec of a machine that is to be a template, and those of its clones.  Pure."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import unicodedata
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.boards import board_of, family_of
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import mac_of, machine_name_problem
from qmpkit.spec.network import Nic, UserNic
from qmpkit.spec.peripherals import Rng, ScsiController, UsbController, UsbKeyboard, UsbTablet
from qmpkit.templates.arguments import service_faults

__all__ = ["Somebody", "clone_spec", "name_faults", "private_spec", "refuse_unfit", "somebody"]
__all__ += ["templating"]

_MOVABLE = (Rng, ScsiController, UsbController, UsbKeyboard, UsbTablet)
_HOSTNAME_LIMIT = 63
_DIGEST = 8
_AT_START = "boot the machine from qmpkit.templating(spec, path)"


def templating(
    spec: MachineSpec,
    path: str | os.PathLike[str],
    *,
    ram: str | os.PathLike[str] | None = None,
) -> MachineSpec:
    """*spec* as it has to be booted for `to_template(vm, path)`.

    Its RAM is in a file from the start, shared: `path` with `.ram` behind it, or *ram*, in a
    tmpfs, on huge pages (with `memory.huge_pages`) or wherever it is to stay.  It has no
    balloon, which would punch holes into what clones share, and shows `vmgenid` where the
    board can.  Nothing is made.
    """
    file = os.fspath(ram) if ram is not None else f"{os.fspath(path)}.ram"
    memory = attrs.evolve(
        spec.memory, mem_path=file, share=True, free_page_reporting=False, deflate_on_oom=False
    )
    board = board_of(spec.machine, spec.arch)
    shown = spec.vmgenid or ("auto" if board is not None and board.vmgenid else None)
    return attrs.evolve(spec, memory=memory, balloon=False, vmgenid=shown)


def refuse_unfit(spec: MachineSpec, *, twins: bool, services: Sequence[str] = ()) -> None:
    """Raise SpecInvalid with everything that a template cannot have, and what to do instead.

    *services* are those that are to be stopped for it.
    """
    faults = [*_memory_faults(spec), *_device_faults(spec), *_nic_faults(spec)]
    faults += service_faults(services, twins=twins)
    if not spec.agent and not twins:
        message = "without a guest agent no clone can become somebody"
        faults.append(Fault("agent", message, "agent = true, or ask for `twins` (--twins)"))
    has_kernel = spec.kernel is not None and spec.kernel.image is not None
    if not has_kernel and family_of(spec.machine) == "microvm":
        message = "a microvm boots by a kernel alone, and without one there is nothing to save"
        faults.append(Fault("kernel", message, "kernel.image = …, or another board"))
    if faults:
        raise SpecInvalid(faults, f"machine {spec.name!r} as a template")


def _memory_faults(spec: MachineSpec) -> Iterator[Fault]:
    if spec.memory.mem_path is None or not spec.memory.share:
        yield Fault("memory", "its RAM is not shared in a file", _AT_START)
    if spec.memory.dimms or spec.memory.free_page_reporting:
        where = "memory.dimms" if spec.memory.dimms else "memory.free_page_reporting"
        yield Fault(where, "clones cannot have it: all of their RAM is in one file", "leave it out")
    if spec.balloon:
        message = "a clone's balloon would punch holes into the RAM that all share"
        yield Fault("balloon", message, _AT_START)
    if spec.numa:
        yield Fault("numa", "one file holds the RAM of one node only", "leave it out")


def _device_faults(spec: MachineSpec) -> Iterator[Fault]:
    for number, device in enumerate(spec.devices):
        if not isinstance(device, _MOVABLE):
            message = f"a {type(device).__name__} ({device.id}) has its state on the host"
            yield Fault(f"devices[{number}]", message, "plug one into each clone instead")
    if spec.vsock is not None:
        yield Fault("vsock", "two clones cannot have one CID", "plug one into each clone instead")
    for number, disk in enumerate(spec.disks):
        if disk.luks is not None:
            message = "an encrypted disk cannot be frozen yet"
            yield Fault(f"disks[{number}].luks", message, "use a plain image")
    if isinstance(spec.firmware, Uefi) and spec.firmware.secure_boot:
        yield Fault("firmware.secure_boot", "its variables cannot be frozen yet", "leave it out")


def _nic_faults(spec: MachineSpec) -> Iterator[Fault]:
    for number, nic in enumerate(spec.nics):
        if not isinstance(nic, UserNic):
            message = f"{nic.id!r} has one end on the host, and every clone would need its own"
            yield Fault(
                f"nics[{number}]", message, "leave it out; `vm.nics.add` plugs one into each clone"
            )


@attrs.frozen
class Somebody:
    """Who a clone is: what makes it another than its template and its siblings.

    `macs`: the new address of each NIC by the one that the template has.
    """

    name: str
    uuid: str
    machine_id: str
    instance_id: str
    macs: Mapping[str, str]

    @property
    def hostname(self) -> str:
        """The name, in the characters that a host's name may have.

        Another name never gives the same: what it loses, a digest of it tells.
        """
        letters = unicodedata.normalize("NFKD", self.name).encode("ascii", "ignore").decode()
        text = re.sub(r"[^A-Za-z0-9-]+", "-", letters)[:_HOSTNAME_LIMIT].strip("-")
        if text == self.name:
            return text
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:_DIGEST]
        return f"{text[: _HOSTNAME_LIMIT - _DIGEST - 1].rstrip('-') or 'clone'}-{digest}"


def somebody(spec: MachineSpec, name: str | None = None) -> Somebody:
    """A new one, for a clone of *spec*; all but *name* is drawn at random.

    SpecInvalid for a name that no machine can have.
    """
    if name is not None and (faults := [*name_faults(name)]):
        raise SpecInvalid(faults, f"a clone of {spec.name!r}")
    token = secrets.token_hex(4)
    old = [_mac(spec, nic) for nic in spec.nics]
    return Somebody(
        name=name or f"{spec.name[:40]}-{token}",
        uuid=str(uuid.uuid4()),
        machine_id=secrets.token_hex(16),
        instance_id=f"i-{secrets.token_hex(8)}",
        macs={mac: _new_mac() for mac in old},
    )


def name_faults(name: str) -> Iterator[Fault]:
    """Of a name for a clone."""
    if not isinstance(name, str):
        yield Fault("name", f"is a text, not {name!r}")
    elif problem := machine_name_problem(name):
        yield Fault("name", problem)


def _mac(spec: MachineSpec, nic: Nic) -> str:
    return (nic.mac or mac_of(spec.name, nic.id)).lower()


def _new_mac() -> str:
    return ":".join(f"{byte:02x}" for byte in (0x52, 0x54, *secrets.token_bytes(4)))


def private_spec(spec: MachineSpec, overlays: Mapping[str, Path]) -> MachineSpec:
    """The machine that the template of *spec* is loaded into, but for who it is.

    Its RAM is private: what it writes is its own.  *overlays*: the file of each disk that it
    may write, by the disk's id.  A forward gets whatever port of the host is free.
    """
    memory = attrs.evolve(spec.memory, share=False, prealloc=False, prealloc_threads=1)
    disks = [
        attrs.evolve(disk, file=str(overlays[disk.id]), format="qcow2")
        if disk.id in overlays
        else disk
        for disk in spec.disks
    ]
    shown = None if spec.vmgenid is None else "auto"
    nics = [_own_ports(nic) for nic in spec.nics]
    return attrs.evolve(spec, memory=memory, disks=disks, vmgenid=shown, nics=nics)


def _own_ports(nic: Nic) -> Nic:
    if not isinstance(nic, UserNic):
        return nic
    return attrs.evolve(nic, forwards=[attrs.evolve(it, host=0) for it in nic.forwards])


def clone_spec(private: MachineSpec, who: Somebody, overlays: Mapping[str, Path]) -> MachineSpec:
    """A `private_spec` as *who*, with *overlays* of its own."""
    nics = [attrs.evolve(nic, mac=who.macs[_mac(private, nic)]) for nic in private.nics]
    disks = [
        attrs.evolve(disk, file=str(overlays[disk.id])) if disk.id in overlays else disk
        for disk in private.disks
    ]
    return attrs.evolve(private, name=who.name, uuid=who.uuid, nics=nics, disks=disks)
