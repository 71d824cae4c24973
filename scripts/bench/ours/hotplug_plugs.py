"""Our side of the hotplug metrics: `vm.disks` and `vm.nics`, in a running program."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import plugged_guest as guest
import trio
from hotplug_spec import SPEC

from qmpkit import VM, Disk, UserNic, running


async def tell(vm: VM, line: str, answer: str) -> None:
    await vm.console.send_line(line)
    await vm.console.expect(answer)


async def seconds(step: Callable[[], Awaitable[object]]) -> float:
    begun = time.monotonic()
    await step()
    return time.monotonic() - begun


async def seen_disk(vm: VM, image: str) -> tuple[float, float, float]:
    """Seconds from the call to the guest's line, of the call, and of the unplug."""
    seen = 0.0

    async def see() -> None:
        nonlocal seen
        await vm.console.expect(guest.DISK_SEEN)
        seen = time.monotonic() - begun

    async with trio.open_nursery() as nursery:
        nursery.start_soon(see)
        begun = time.monotonic()
        disk = await vm.disks.add(Disk(image, format="raw"))
        called = time.monotonic() - begun
    took = await seconds(lambda: vm.disks.remove(disk.id))
    await tell(vm, guest.gone("/sys/block/vda"), guest.GONE)
    return seen, called, took


async def few(vm: VM, load: dict[str, Any]) -> dict[str, float]:
    each = [await seen_disk(vm, load["image"]) for _ in range(load["plugs"])]
    seen, called, gone = zip(*each, strict=True)
    return {
        "disk_seen": statistics.median(seen),
        "called": statistics.median(called),
        "disk_gone": statistics.median(gone),
    }


async def many(vm: VM, load: dict[str, Any]) -> dict[str, float]:
    disks, nics = [], []
    for _ in range(load["plugs"]):
        took = await seconds(lambda: vm.disks.add(Disk(load["image"], format="raw")))
        await vm.console.expect(guest.DISK_SEEN)
        disks.append(took + await seconds(lambda: vm.disks.remove("disk0")))
        await tell(vm, guest.gone("/sys/block/vda"), guest.GONE)
        took = await seconds(lambda: vm.nics.add(UserNic()))
        await tell(vm, guest.there("/sys/class/net/eth0"), guest.STARTED)
        nics.append(took + await seconds(lambda: vm.nics.remove("nic0")))
        await tell(vm, guest.gone("/sys/class/net/eth0"), guest.GONE)
    return {
        "disk": statistics.median(disks),
        "nic": statistics.median(nics),
        "disk_slowing": guest.slowing(disks),
        "nic_slowing": guest.slowing(nics),
    }


async def measure(load: dict[str, Any]) -> dict[str, float]:
    async with running(SPEC) as vm:
        await vm.console.expect(guest.PROMPT)
        await tell(vm, guest.SET_UP, guest.READY)
        return await (many if load["many"] else few)(vm, load)


print(json.dumps(trio.run(measure, json.loads(sys.argv[1]))))
