"""A disk behind a PCI Express switch: plugged live, seen, at the same place after a restart."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

import qmpkit
from qmpkit import Disk
from tests.live.plugged import agreed, guest_sees, places
from tests.sizes import OLDEST

pytestmark = pytest.mark.live


@pytest.mark.bound(120)
@pytest.mark.qemus(*OLDEST)
async def test_a_guest_sees_a_disk_behind_a_switch(qemu: str, tmp_path: Path) -> None:
    tiny = attrs.evolve(qmpkit.load_profile("tiny"), qemu=qemu, accel="tcg", root_ports=34)
    async with qmpkit.running(tiny) as vm:
        await vm.agent.wait_ready()
        assert vm.devices.ports().left == 34
        image = Disk(tmp_path / "a.raw", format="raw", make="1MiB", serial="a")
        first = await vm.disks.add(attrs.evolve(image, bus="spare-port33"))
        assert first.bus == "spare-port33" and vm.devices.ports().left == 33
        await agreed(vm)
        await guest_sees(vm)
        spec, before = vm.spec, await places(vm)
        await vm.disks.remove(first.id)
        await agreed(vm)
        await guest_sees(vm)
    async with qmpkit.running(spec, paused=True) as vm:
        assert await places(vm) == before
