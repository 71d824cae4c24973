"""NICs whose plug or change is cancelled at its worst moment."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from qmpkit import UserNic
from qmpkit.operations.hotplug import nics
from qmpkit.operations.hotplug.plug import unplug_parts
from qmpkit.testing import guests
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
