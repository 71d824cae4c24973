"""`MachineSpec`: everything a virtual machine is, as plain data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Literal

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.spec.block import Disk, to_disks
from qmpkit.spec.chardev import Serial, to_serials
from qmpkit.spec.cpu import Cpu, to_cpu
from qmpkit.spec.firmware import Firmware, to_firmware
from qmpkit.spec.given import items_of, table_of
from qmpkit.spec.memory import Memory, to_memory
from qmpkit.spec.network import Nic, link_needed, to_nics
from qmpkit.spec.numa import NumaNode, to_numa
from qmpkit.spec.peripherals import Device, Share, VirtioMem, to_devices
from qmpkit.spec.resources import Resources
from qmpkit.spec.sizes import Size
from qmpkit.spec.snapshots import Snapshot

__all__ = ["Accel", "Kernel", "MachineSpec", "Option", "channels", "links"]

Accel = Literal["auto", "kvm", "tcg"]
Option = str | int | bool


def _optional_path(value: str | os.PathLike[str] | None) -> str | None:
    return None if value is None else os.fspath(value)


def _launcher(value: Iterable[str]) -> tuple[str, ...]:
    return items_of(value, "launcher", '["nice", "-n", "5"]')


def _folders(value: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    wanted = items_of(value, "image_folders", '["/srv/images"]', (str, os.PathLike))
    return tuple(os.fspath(folder) for folder in wanted)


def _extra_args(value: Iterable[str]) -> tuple[str, ...]:
    return items_of(value, "extra_args", '["-rtc", "base=localtime"]')


def _snapshots(value: Iterable[Snapshot]) -> tuple[Snapshot, ...]:
    return items_of(value, "snapshots", 'Snapshot(name="before")', (Snapshot,))


def _ports(value: Iterable[str]) -> tuple[str, ...]:
    return items_of(value, "last_ports", '["disk-port2"]', (str,))


def _env(value: Mapping[str, str]) -> dict[str, str]:
    return table_of(value, "env")


def _options(value: Mapping[str, Option]) -> dict[str, Option]:
    return table_of(value, "machine_options")


@attrs.frozen
class Kernel:
    """A kernel that QEMU loads itself, without a boot loader.

    `append` may hold `${tsc_khz}`; a word whose variable the host does not know is dropped.
    `image` None boots without one: a profile can give words for kernels yet to be named.
    """

    image: str | None = attrs.field(default=None, converter=_optional_path)
    initrd: str | None = attrs.field(default=None, converter=_optional_path)
    append: str = ""


def _kernel(value: Kernel | None) -> Kernel | None:
    if value is not None and not isinstance(value, Kernel):
        raise SpecInvalid([Fault("kernel", f"cannot be {value!r}", 'Kernel("vmlinuz")')])
    return value


def _resources(value: Resources) -> Resources:
    if not isinstance(value, Resources):
        hint = 'Resources(emulator="0-1")'
        raise SpecInvalid([Fault("resources", f"cannot be {value!r}", hint)])
    return value


@attrs.frozen(kw_only=True)
class MachineSpec:
    """A machine. Nothing is created or checked by writing one; `validate` finds its faults.

    `description`: what the machine is for, in one line, for lists.
    `arch`, `machine`: "q35", "microvm" on "x86_64", "virt" on "aarch64" and "riscv64", or a
    versioned name ("pc-q35-7.2"), with `machine_options` for `-machine`. `accel`: "auto"
    takes KVM when it serves, else TCG. `memory` and `cpu` may be given as a size and a
    number. `numa`: the NUMA nodes that the guest sees; none is one. `resources`: what the
    machine is given of the host, and may use of it at most. `firmware`: "uefi" or
    `Uefi(…)`, a BIOS file; None is QEMU's own. `serials`: a number or names. `devices`: of
    any other kind. `agent`: a channel for qemu-guest-agent. `image_folders`: where
    the files must be that disks' images name (bases, data files, extents), for images of
    strangers; empty is anywhere; a base in `make` is your own word. `panic`: a device by
    which the guest reports its panic.
    `vmgenid`: "auto" or a UUID; `vsock`: the guest's CID. `display`: "std" is a VGA
    card, on virt a virtio one with a keyboard, that screenshots show. `root_ports`:
    empty ports for hotplug, on boards with PCI; the 33rd to 160th are those of switches.
    `no_reboot`: a reboot ends the machine. `uuid`: the SMBIOS UUID. `sandbox`:
    QEMU's seccomp filter. `run_as`: the user QEMU becomes after its start. `launcher`:
    words put before the command, a program that becomes it (exec) or waits for it: the
    machine's end is the launcher's. `env`: variables added to QEMU's environment.
    `qemu`: the binary. `extra_args`: appended as they are, the last resort.
    `snapshots`: the points that its disks can go back to, and `snapshot` the one that it
    goes on from: written by the operations that make them. `resume_from`: the file of a
    snapshot's RAM with which the next start goes on, and no later one: written by a revert.
    `last_ports`: root ports that are there whether or not something sits in them, each with those
    before it: written by hotplug, for a machine that is started again is to be the same.
    """

    name: str = "vm"
    description: str = ""
    arch: str = "x86_64"
    machine: str = "q35"
    machine_options: dict[str, Option] = attrs.field(factory=dict, converter=_options)
    accel: Accel = "auto"
    cpu: Cpu = attrs.field(default=Cpu(), converter=to_cpu)
    memory: Memory = attrs.field(default=Memory(), converter=to_memory)
    numa: tuple[NumaNode, ...] = attrs.field(default=(), converter=to_numa)
    resources: Resources = attrs.field(default=Resources(), converter=_resources)
    kernel: Kernel | None = attrs.field(default=None, converter=_kernel)
    firmware: Firmware = attrs.field(default=None, converter=to_firmware)
    image_folders: tuple[str, ...] = attrs.field(default=(), converter=_folders)
    disks: tuple[Disk, ...] = attrs.field(default=(), converter=to_disks)
    nics: tuple[Nic, ...] = attrs.field(default=(), converter=to_nics)
    devices: tuple[Device, ...] = attrs.field(default=(), converter=to_devices)
    serials: tuple[Serial, ...] = attrs.field(default=(Serial(),), converter=to_serials)
    agent: bool = False
    rng: bool = False
    balloon: bool = False
    panic: bool = True
    vmgenid: str | None = None
    vsock: int | None = None
    display: Literal["none", "std"] = "none"
    root_ports: int = 0
    no_reboot: bool = False
    uuid: str | None = None
    sandbox: bool = True
    run_as: str | None = None
    launcher: tuple[str, ...] = attrs.field(default=(), converter=_launcher)
    env: dict[str, str] = attrs.field(factory=dict, converter=_env)
    qemu: str | None = attrs.field(default=None, converter=_optional_path)
    extra_args: tuple[str, ...] = attrs.field(default=(), converter=_extra_args)
    snapshots: tuple[Snapshot, ...] = attrs.field(default=(), converter=_snapshots)
    snapshot: str | None = None
    resume_from: str | None = attrs.field(default=None, converter=_optional_path)
    last_ports: tuple[str, ...] = attrs.field(default=(), converter=_ports)

    @property
    def most_memory(self) -> Size:
        """Bytes that the guest may come to have: RAM, modules, and all of what can grow."""
        growing = (it.size for it in self.devices if isinstance(it, VirtioMem))
        return Size(self.memory.total + sum(growing))


def channels(spec: MachineSpec) -> tuple[str, ...]:
    """The byte channels `render` wants an endpoint for: "qmp", the serials, "agent"."""
    agent = ("agent",) if spec.agent else ()
    return ("qmp", *(serial.name for serial in spec.serials), *agent)


def links(spec: MachineSpec) -> tuple[str, ...]:
    """The NICs whose socket must be handed to `render`, as endpoints named after them."""
    return tuple(nic.id for nic in spec.nics if link_needed(nic))


def served(spec: MachineSpec) -> tuple[Share, ...]:
    """The shares whose virtiofsd is the machine's own: `render` wants an endpoint for each."""
    return tuple(it for it in spec.devices if isinstance(it, Share) and it.served)
