"""Unplugs, and changes of what is plugged, cancelled at their checkpoints: all agree after."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import attrs
import pytest

from qmpkit import VM, Disk, Rng, SpecInvalid, UserNic, VirtioMem
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from tests.live.plugged_views import BLOCK, Views, grown, restarted, roomy, soon
from tests.sizes import CHANGE_CANCELS, CHANGES_CANCELLED, NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]

MIB = 1 << 20


@attrs.frozen
class Changes:
    """Each public method is a change; `restored` makes all ready for it again."""

    vm: VM
    disk: Disk

    async def remove_disk(self) -> None:
        await self.vm.disks.remove("disk0")

    async def remove_rng(self) -> None:
        await self.vm.devices.remove("rng1")

    async def remove_module(self) -> None:
        await self.vm.memory.remove("dimm0")

    async def change_nic(self) -> None:
        net = "10.8.0.0/24" if "10.9" in str(self.vm.spec.nics[0]) else "10.9.0.0/24"
        await self.vm.nics.change(UserNic(id="nic0", net=net))

    async def pull_cable(self) -> None:
        (nic,) = self.vm.spec.nics
        await self.vm.nics.set_link("nic0", up=not nic.link)

    async def add_growing(self) -> None:
        await self.vm.devices.add(VirtioMem(size=BLOCK))

    async def balloon(self) -> None:
        await self.vm.memory.balloon(self.vm.spec.memory.total - MIB)

    async def restored(self) -> None:
        vm = self.vm
        with suppress(SpecInvalid):  # it may be gone already, or go just now
            await vm.disks.remove("disk0")
        for device in grown(vm.spec):
            await vm.devices.remove(device.id)
        await vm.disks.add(self.disk)
        if all(it.id != "rng1" for it in vm.spec.devices):
            await vm.devices.add(Rng(id="rng1"))
        if not vm.spec.nics:
            await vm.nics.add(UserNic(id="nic0"))
        if not vm.memory.dimms:
            await vm.memory.add(BLOCK)
        await vm.memory.balloon(vm.spec.memory.total)


@pytest.mark.bound(120 + 2400 // CHANGE_CANCELS)
async def test_what_is_there_after_a_cancellation_is_in_the_spec(qemu: str, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "a.raw", format="raw", make="1MiB", id="disk0", serial="a")
    async with restarted(roomy(qemu), boot=True) as vm:
        changes, views = Changes(vm, disk), Views(vm, tmp_path)
        await views.begin()
        await changes.restored()

        async def after() -> None:
            views.inflated = 0
            await soon(agree)
            await changes.restored()

        async def agree() -> None:
            left = await vm.memory.balloon_size()
            assert vm.spec.memory.total - left in (0, MIB), "as it was, or as it was to be"
            views.inflated = vm.spec.memory.total - left
            await views.agree()

        for name in CHANGES_CANCELLED:
            if name == "add_growing" and "10.0" not in qemu:
                continue  # which gives none back
            change: Callable[[], Awaitable[None]] = getattr(changes, name)
            assert await cancel_at_every_checkpoint(change, every=CHANGE_CANCELS, after=after)
