"""Devices come and go on a board whose root ports have a button, which the guest waits on."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

import qmpkit
from qmpkit import Disk, UserNic
from qmpkit.testing import guests
from tests.conftest import Board
from tests.live.plugged import agreed, guest_sees
from tests.sizes import BUTTONS, LONG

pytestmark = pytest.mark.live


@pytest.mark.skipif(not LONG, reason="it waits for a button, three times: with --long")
@pytest.mark.bound(150)
@pytest.mark.boards(*BUTTONS)
async def test_a_guest_lets_go_five_seconds_later(board: Board, tmp_path: Path) -> None:
    guests.build_tiny(board.arch)
    profile = qmpkit.load_profile(f"tiny-{board.arch}")
    async with qmpkit.running(attrs.evolve(profile, qemu=board.qemu, accel="tcg")) as vm:
        await vm.agent.wait_ready()
        disk = await vm.disks.add(Disk(tmp_path / "a.raw", format="raw", make="1MiB", serial="a"))
        await vm.nics.add(UserNic())
        await guest_sees(vm)
        await agreed(vm)
        await vm.disks.remove(disk.id)
        await guest_sees(vm)
        await agreed(vm)
        assert not vm.spec.disks and vm.spec.nics
