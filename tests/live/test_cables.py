"""Cables that are taken away just after they were made, which QEMU itself does not survive."""

from __future__ import annotations

import socket
import tempfile

import pytest

import qmpkit
from qmpkit import MachineSpec
from qmpkit.operations.hotplug.cables import remove_cable
from tests.sizes import QEMU_VERSIONS

pytestmark = [pytest.mark.live, pytest.mark.qemus(*QEMU_VERSIONS)]

ROUNDS = 6


async def test_a_stream_is_taken_away_as_soon_as_it_was_made(qemu: str) -> None:
    bare = MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB")
    with tempfile.TemporaryDirectory(prefix="qk-") as name, socket.socket(socket.AF_UNIX) as there:
        there.bind(f"{name}/there")
        there.listen(2 * ROUNDS)
        async with qmpkit.running(bare, paused=True) as vm:
            for server, path in [(True, "own"), (False, "there"), (False, "nowhere")] * ROUNDS:
                end = {"type": "unix", "path": f"{name}/{path}"}
                cable = {"type": "stream", "id": "cable", "server": server, "addr": end}
                await vm.execute("netdev_add", cable)
                await remove_cable(vm.machine, "cable")
            assert vm.state is qmpkit.State.PAUSED


@pytest.mark.qemus(QEMU_VERSIONS[-1])
async def test_one_that_still_connects_is_left(
    qemu: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("qmpkit.operations.hotplug.cables._GRACE", 0.2)
    bare = MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB")
    with (
        tempfile.TemporaryDirectory(prefix="qk-") as name,
        socket.socket(socket.AF_UNIX) as full,
        socket.socket(socket.AF_UNIX) as first,
    ):
        full.bind(f"{name}/full")
        full.listen(0)
        first.connect(f"{name}/full")  # waits to be accepted: whoever comes now, waits to wait
        async with qmpkit.running(bare, paused=True) as vm:
            end = {"type": "unix", "path": f"{name}/full"}
            await vm.execute("netdev_add", {"type": "stream", "id": "cable", "addr": end})
            await remove_cable(vm.machine, "cable")
            assert "the netdev 'cable' still connects: it is left" in caplog.text
