"""What the tests of migration share: machines that count and write, and somebody who kills."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

import qmpkit
from qmpkit import VM, Cpu, Disk, LaunchOptions, MachineSpec, MigrationOptions, State
from qmpkit.operations.migration.local_end import LocalEnd
from qmpkit.qmp.session import Direction
from qmpkit.spec.block import DiskFormat
from qmpkit.testing import guests
from tests.live.blocks import nothing_left, write
from tests.live.counting import counted

__all__ = ["SLOW", "At", "counting", "dies_of_running", "lives_on", "options_for"]
__all__ += ["still_here"]

SLOW = MigrationOptions(max_bandwidth="1KiB", downtime=0.001)
ODD = "16400KiB"  # RAM of any multiple of 256 KiB is not safe from 7.2 under TCG


def counting(qemu: str, folder: Path, **changes: Any) -> MachineSpec:
    """A guest that counts in its memory, of a type that both QEMUs have, with two disks."""
    guests.build_kvm_tiny()
    formats: tuple[DiskFormat, ...] = ("qcow2", "raw")
    disks = [Disk(str(folder / f"{kind}.img"), format=kind, make="16MiB") for kind in formats]
    tiny = qmpkit.load_profile("kvm-tiny")
    spec = attrs.evolve(
        tiny,
        name="mover",
        qemu=qemu,
        accel="tcg",
        machine="pc-q35-7.2",
        memory=ODD,
        cpu=Cpu(model="Nehalem"),
        disks=disks,
    )
    return attrs.evolve(spec, **changes)


def options_for(way: str, folder: Path) -> MigrationOptions:
    """The options of a way, some of them with what it can do beside."""
    match way:
        case "multifd":
            return MigrationOptions(way="unix", channels=2, compression="zlib")
        case "file":
            return MigrationOptions(way="file", file=folder / "memory")
        case "postcopy":  # so slow that the guest would never arrive otherwise
            return MigrationOptions(max_bandwidth="16MiB", downtime=0.001)
        case "fd" | "unix" | "tcp":
            return MigrationOptions(way=way)
    raise ValueError(way)


async def lives_on(vm: VM, had: int) -> None:
    """The guest runs on from where it had counted to, and its disks can be written to."""
    assert vm.state is State.RUNNING
    now = await counted(vm)
    assert now >= had
    await vm.console.reader().expect(".")
    assert await counted(vm) > now
    for disk in ("disk0", "disk1"):
        await write(vm, disk, 3, 7)
    await nothing_left(vm)


async def still_here(vm: VM, had: int) -> None:
    """The migration came to nothing: the machine is as it was, and can be moved again."""
    await lives_on(vm, had)
    assert vm.report is None
    async with qmpkit.receiving(vm) as again:
        await vm.migrate(again)
        await lives_on(again.vm, had)


def dies_of_running(patch: pytest.MonkeyPatch) -> None:
    """Have a destination die when it is told to run: nobody knows what it has done by then.

    It is killed before it hears of it, for on a busy host it would answer first at times.
    """

    tell = LocalEnd._told_to_run

    async def killed_before(self: LocalEnd) -> None:
        os.kill(self._machine.child.pid, signal.SIGKILL)
        await tell(self)

    patch.setattr(LocalEnd, "_told_to_run", killed_before)


class At:
    """Watches a monitor, and does something when a message with this *word* is sent, or received.

    What is said when it is known: `at.act = scope.cancel`, or `at.victim = vm.pid` for whom it
    kills.  It does so once, and `has_come` tells.
    """

    def __init__(self, word: str, direction: Direction = "sent") -> None:
        self.act: Callable[[], object] | None = None
        self.has_come = False
        self._word = f'"{word}"'.encode()
        self._direction = direction

    @property
    def options(self) -> LaunchOptions:
        """How a machine is started whose monitor is watched."""
        return LaunchOptions(observer=self._see)

    def _kill(self, pid: int) -> None:
        self.act = partial(os.kill, pid, signal.SIGKILL)

    victim = property(None, _kill)

    def _see(self, direction: Direction, message: bytes, _: float) -> None:
        if self.act is None or direction != self._direction or self._word not in message:
            return
        act, self.act, self.has_come = self.act, None, True
        act()
