"""The dicts of a spec's devices, backends and objects, in the order QEMU needs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs

from qmpkit.spec import block, chardev, layout, network
from qmpkit.spec.addresses import Layout, Place, port_devices
from qmpkit.spec.boards import family_of
from qmpkit.spec.chardev import Endpoint, Serial
from qmpkit.spec.dimms import DIMM_DRIVER, dimm_device
from qmpkit.spec.encryption import BaseImage, secret_objects
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.memory import Memory
from qmpkit.spec.numa import placed_backend, ram_backends
from qmpkit.spec.options import Json
from qmpkit.spec.peripherals import (
    Controller,
    ScsiController,
    VirtioMem,
    device_object,
    peripheral_device,
)
from qmpkit.spec.units import Unit, controllers, units_of

__all__ = ["blockdevs", "devices", "netdevs", "objects", "serial_ports"]

_NOWHERE = Place("")


def objects(spec: MachineSpec) -> Iterator[Json]:
    """`-object`: the RAM, the disks' threads and secrets, the source of randomness."""
    yield from ram_backends(spec.memory, spec.numa)
    for dimm in spec.memory.dimms:
        yield placed_backend(spec.memory, spec.numa, dimm)
    growing = attrs.evolve(spec.memory, prealloc=False, prealloc_threads=1)
    for device in spec.devices:
        if isinstance(device, VirtioMem):  # which takes what it needs when it needs it
            yield placed_backend(growing, spec.numa, device)
    for thread in _iothreads(spec):
        yield block.iothread_object(thread)
    for disk in spec.disks:
        yield from secret_objects(disk.id, disk.luks)
    if spec.rng:
        yield {"qom-type": "rng-random", "id": "qk-rng0", "filename": "/dev/urandom"}
    yield from filter(None, map(device_object, spec.devices))


def _iothreads(spec: MachineSpec) -> Iterator[str]:
    own = (it.iothread for it in spec.devices if isinstance(it, ScsiController))
    yield from dict.fromkeys([*block.iothreads_of(spec.disks), *filter(None, own)])


def blockdevs(
    spec: MachineSpec, bases: Mapping[str, Sequence[BaseImage]] | None = None
) -> Iterator[Json]:
    """`-blockdev`; *bases*: those of encrypted disks, by the disk's id."""
    for disk in spec.disks:
        if not disk.is_empty:
            yield from block.blockdevs_of(disk, bases=(bases or {}).get(disk.id, ()))


def netdevs(spec: MachineSpec, endpoints: Mapping[str, Endpoint]) -> Iterator[Json]:
    """`-netdev`."""
    for nic in spec.nics:
        yield network.netdev_of(nic, endpoints.get(nic.id))


def serial_ports(spec: MachineSpec) -> Iterator[str]:
    """`-serial`: on virt the board's port is there before any device."""
    for serial in spec.serials:
        if _on_board(spec, serial):
            yield chardev.serial_option(serial)


def _on_board(spec: MachineSpec, serial: Serial) -> bool:
    return serial.kind == "isa" and family_of(spec.machine) == "virt"


def devices(spec: MachineSpec, placed: Layout) -> Iterator[Json]:
    """`-device`: buses before what sits on them, and memory that has its place before other."""
    yield from sorted(_devices(spec, placed), key=_is_to_be_placed)


def _is_to_be_placed(device: Json) -> bool:
    """Whether QEMU finds room for it: among what is there by then."""
    where = {DIMM_DRIVER: "addr", "virtio-mem-pci": "memaddr"}.get(str(device["driver"]))
    return where is not None and where not in device


def _devices(spec: MachineSpec, placed: Layout) -> Iterator[Json]:
    for port in placed.ports:
        yield from port_devices(port)
    for dimm in spec.memory.dimms:
        yield dimm_device(dimm, nodes=bool(spec.numa))
    yield from _platform(spec, placed)
    yield from _serials(spec, placed)
    units = units_of(spec)
    yield from _controllers(spec, placed)
    yield from _disks(spec, placed, units)
    for nic in spec.nics:
        yield network.nic_device_of(nic, placed.places[nic.id], spec.name)
    yield from _peripherals(spec, placed, units)


def _platform(spec: MachineSpec, placed: Layout) -> Iterator[Json]:
    places = placed.places
    if "vga0" in places:
        # A PC's card has its memory where a virt guest under KVM would see stale pixels.
        driver = "virtio-gpu-pci" if family_of(spec.machine) == "virt" else "VGA"
        yield {"driver": driver, "id": "vga0", **places["vga0"].properties()}
    if "keyboard0" in places:
        yield _virtio("keyboard", places)
    if "rng0" in places:
        yield _virtio("rng", places, rng="qk-rng0")
    if "balloon0" in places:
        yield _virtio("balloon", places, **_balloon_features(spec.memory))
    if "vsock0" in places:
        place = places["vsock0"]
        driver = place.virtio("vsock").replace("virtio", "vhost")
        yield {
            "driver": driver,
            "id": "vsock0",
            **place.properties(),
            "guest-cid": spec.vsock,
        }
    if "panic0" in places:
        yield {"driver": "pvpanic-pci", "id": "panic0", **places["panic0"].properties()}
    elif spec.panic:
        yield {"driver": "pvpanic", "id": "panic0"}
    if spec.vmgenid is not None:
        yield {"driver": "vmgenid", "id": "vmgenid0", "guid": spec.vmgenid}


def _balloon_features(memory: Memory) -> dict[str, object]:
    # Said only when on: what is not named is as in every machine there has been.
    wanted = {
        "free-page-reporting": memory.free_page_reporting,
        "deflate-on-oom": memory.deflate_on_oom,
    }
    return {name: True for name, on in wanted.items() if on}


def _virtio(kind: str, places: Mapping[str, Place], **properties: object) -> Json:
    name = f"{kind}0"
    place = places[name]
    return {"driver": place.virtio(kind), "id": name, **place.properties(), **properties}


def _serials(spec: MachineSpec, placed: Layout) -> Iterator[Json]:
    if (place := placed.places.get(layout.VSERIAL)) is not None:
        yield chardev.virtio_serial_device(layout.VSERIAL, place)
    count = {"isa": 0, "virtio": 0}
    for serial in spec.serials:
        if not _on_board(spec, serial):
            yield chardev.serial_device(serial, count[serial.kind], layout.VSERIAL)
            count[serial.kind] += 1
    if spec.agent:
        yield chardev.agent_device(layout.AGENT, layout.VSERIAL, "agent")


def _controllers(spec: MachineSpec, placed: Layout) -> Iterator[Json]:
    for controller in controllers(spec):
        yield peripheral_device(controller, placed.places.get(controller.id, _NOWHERE))


def _disks(spec: MachineSpec, placed: Layout, units: Mapping[str, Unit]) -> Iterator[Json]:
    for disk in spec.disks:
        if (unit := units.get(disk.id)) is not None:
            yield block.device_of(disk, unit.place, unit.number)
        else:
            yield block.device_of(disk, placed.places.get(disk.id, _NOWHERE))


def _peripherals(spec: MachineSpec, placed: Layout, units: Mapping[str, Unit]) -> Iterator[Json]:
    for device in spec.devices:
        if (unit := units.get(device.id)) is not None:
            yield peripheral_device(device, unit.place, unit.number)
        elif not isinstance(device, Controller):
            yield peripheral_device(device, placed.places.get(device.id, _NOWHERE))
