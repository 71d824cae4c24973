"""A device that goes: the guest is asked, and its answer waited for."""

from __future__ import annotations

import trio

from qmpkit.operations._protocols import Monitor
from qmpkit.operations.hotplug.errors import UnplugPending, UnplugRefused
from qmpkit.qmp.errors import CommandRefused
from qmpkit.qmp.events import Event, Subscription

__all__ = ["PERIPHERAL", "UNPLUG_GRACE", "is_plugged", "plugged_devices", "release"]

PERIPHERAL = "/machine/peripheral"
"""Where QEMU has the devices that have an id."""

UNPLUG_GRACE = 15.0
"""Seconds that a guest has to answer: Linux takes 0.1 s, and 5 s on a `virt` board."""

# A request that came before the guest's driver is lost on it, and nothing tells when that has
# come; a second one within 5 s would take the first back (the slot's button).
_ASK_AGAIN = 6.0

# Seconds after which QEMU is asked whether a device is there that nothing was told of; doubled.
_LOOK = 0.25

_DELETED = "DEVICE_DELETED"
_GUEST_ERROR = ("DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR")
_OST = "ACPI_DEVICE_OST"
_EJECTION = (0x3, 0x103)  # what an _OST is about
_DONE_OR_UNDER_WAY = (0x0, 0x84)


async def plugged_devices(machine: Monitor) -> frozenset[str]:
    """The ids of all devices that have one (`qom-list`)."""
    found = await machine.execute("qom-list", {"path": PERIPHERAL})
    return frozenset(it["name"] for it in found if it["type"].startswith("child<"))


async def is_plugged(machine: Monitor, device: str) -> bool:
    """Whether there is a device of that id."""
    return device in await plugged_devices(machine)


async def release(
    machine: Monitor, device: str, *, path: str = "", grace: float = UNPLUG_GRACE
) -> None:
    """Take a device away (`device_del`); returns when QEMU has it no more, or never had.

    What the guest has a say in is asked of it for *grace* seconds.  *path*: by which
    DEVICE_DELETED tells of one that it does not name (a CPU's `…/lapic`).

    Raises UnplugRefused when the guest says no, and UnplugPending when it says nothing: at
    once when it stands still, which it is then not asked at all.  Either way the device and
    its back end are as they were, and it can be asked again.  Cancelled, the guest may have
    been asked, and may let go of it later.
    """
    with machine.subscribe(_DELETED, *_GUEST_ERROR, _OST) as events:
        refusal = None
        if not await machine_runs(machine) and await _needs_guest(machine, device):
            raise UnplugPending(machine.name, device, "it stands still")
        with trio.move_on_after(grace):
            while True:
                try:
                    await machine.execute("device_del", {"id": device})
                except CommandRefused as error:
                    if not await is_plugged(machine, device):
                        return None
                    # "already in the process of unplug" is one, and has no class of its own.
                    refusal = error
                with trio.move_on_after(_ASK_AGAIN):
                    return await _gone(machine, events, device, path)
        if not await is_plugged(machine, device):
            return None  # its event has told of it by another name
        raise UnplugPending(machine.name, device, _silence(grace, refusal)) from refusal


async def machine_runs(machine: Monitor) -> bool:
    """Whether the guest's processors run."""
    return bool((await machine.execute("query-status"))["running"])


async def _needs_guest(machine: Monitor, device: str) -> bool:
    """Whether QEMU waits for the guest before it takes the device away: not on SCSI and USB."""
    try:
        bus = await machine.execute(
            "qom-get", {"path": f"{PERIPHERAL}/{device}", "property": "parent_bus"}
        )
        kind = await machine.execute("qom-get", {"path": bus, "property": "type"}) if bus else ""
    except CommandRefused:
        return False  # it is not there: there is nobody to ask
    return kind not in ("SCSI", "usb-bus", "virtio-serial-bus")


async def _gone(machine: Monitor, events: Subscription, device: str, path: str) -> None:
    """Wait for the guest's answer; of a USB controller QEMU never tells that it has gone."""
    look = _LOOK
    while True:
        with trio.move_on_after(look):
            return await _answered(machine.name, events, device, path)
        if not await is_plugged(machine, device):
            with trio.move_on_after(_LOOK):  # it may only just have left, and be told of yet
                await _answered(machine.name, events, device, path)
            return None
        look *= 2


async def _answered(name: str, events: Subscription, device: str, path: str) -> None:
    while True:
        event = await events.next()
        if _deleted(event, device, path):
            return
        if why := refusal_in(event, device):
            raise UnplugRefused(name, device, why)


def _deleted(event: Event, device: str, path: str) -> bool:
    # A virtio device tells twice, first of its inner half, by a path only.
    if event.name != _DELETED:
        return False
    return event.data.get("device") == device or (path != "" and event.data.get("path") == path)


def refusal_in(event: Event, device: str) -> str:
    """Why the guest keeps *device*, when *event* says that it does; else empty.  Pure."""
    data = event.data
    if event.name in _GUEST_ERROR and _concerns(event, device):
        return str(data.get("msg", "it did not say why"))
    info, status = data.get("info", {}), data.get("info", {}).get("status", 0)
    ejection = event.name == _OST and info.get("source") in _EJECTION
    if ejection and info.get("device") == device and status not in _DONE_OR_UNDER_WAY:
        return f"it is in use (_OST status {status:#x})"
    return ""


def _concerns(event: Event, device: str) -> bool:
    path = f"{PERIPHERAL}/{device}"
    return event.data.get("device") == device or str(event.data.get("path", "")).startswith(path)


def _silence(grace: float, refusal: CommandRefused | None) -> str:
    said = f" (QEMU said: {refusal.desc})" if refusal else ""
    return f"it did not answer within {grace:g} s{said}"
