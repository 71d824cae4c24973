"""NICs and disks whose plug or change is cancelled at its worst moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from qmpkit import Disk, IoLimits, UserNic
from qmpkit.operations.hotplug import disks, nics
from qmpkit.operations.hotplug.plug import unplug_parts
from qmpkit.testing import guests
from tests.live.blocks import told
from tests.live.plugged import agreed, guest_sees, hmp
from tests.sizes import NEWEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]


async def test_a_nic_that_is_cancelled_halfway(qemu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scope = trio.CancelScope()

    async def cancelled(*_: object, **__: object) -> None:
        scope.cancel()
        await trio.lowlevel.checkpoint()

    async with guests.booted("tiny", qemu=qemu) as vm:

        async def seen(*_: object) -> None:
            await vm.agent.run(
                ["sh", "-c", "until [ -e /sys/class/net/eth0 ]; do usleep 9999; done"]
            )
            await cancelled()

        await guest_sees(vm)
        with monkeypatch.context() as patch, scope:
            patch.setattr(nics, "_pull", seen)
            await vm.nics.add(UserNic(link=False))
        assert not vm.spec.nics, "it would have its cable in"
        await agreed(vm)
        nic, scope = await vm.nics.add(UserNic(net="10.8.0.0/24")), trio.CancelScope()
        await guest_sees(vm)

        async def gone(*args: Any, **words: Any) -> None:
            await unplug_parts(*args, **words)
            await cancelled()

        with monkeypatch.context() as patch, scope:
            patch.setattr(nics, "unplug_parts", gone)
            await vm.nics.change(UserNic(id=nic.id, net="10.9.0.0/24"))
        assert scope.cancelled_caught
        assert vm.spec.nics[0].id == nic.id, "the old one is back"
        assert "net=10.8.0.0" in await hmp(vm, "info network")
        await agreed(vm)


def cancelled_once(scope: trio.CancelScope, real: Callable[..., Awaitable[None]]) -> Any:
    """*real*, but that the first call cancels *scope* and does nothing else."""
    first = True

    async def function(*args: Any) -> None:
        nonlocal first
        if first:
            first = False
            scope.cancel()
            await trio.lowlevel.checkpoint()
        await real(*args)

    return function


async def test_what_the_guest_does_not_let_go_of_is_as_its_spec_says(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Disk(
        tmp_path / "a.raw", format="raw", make="1MiB", serial="a", limits=IoLimits(iops=500)
    )
    async with guests.booted("tiny", qemu=qemu) as vm:
        async with vm.paused():  # it cannot let go of what is taken back
            with trio.CancelScope() as scope:
                monkeypatch.setattr(nics, "_pull", cancelled_once(scope, nics._pull))
                await vm.nics.add(UserNic(link=False))
            with trio.CancelScope() as other:
                monkeypatch.setattr(disks, "_limited", cancelled_once(other, disks._limited))
                await vm.disks.add(slow)
            assert scope.cancelled_caught and other.cancelled_caught
            assert [nic.link for nic in vm.spec.nics] == [False]
            assert [disk.limits for disk in vm.spec.disks] == [slow.limits]
            await agreed(vm)
            assert await told(vm, "iops") == [500]
        await guest_sees(vm)
