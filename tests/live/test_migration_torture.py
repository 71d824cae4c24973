"""A guest that writes all the time moves again and again, and not a byte of it is lost."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import (
    VM,
    CommandRefused,
    Destination,
    MachineDied,
    MachineGone,
    MigrationFailed,
    Round,
    Step,
)
from qmpkit._trio import raise_failed
from qmpkit.operations.migration.storage import DiskPlaces
from qmpkit.testing import guests
from qmpkit.testing.leaks import leaks
from tests.conftest import binaries
from tests.live.counting import counted
from tests.live.ledger_guest import acknowledged, keeping_a_ledger, records, whole
from tests.live.migrating import options_for
from tests.live.small_disk import SmallDisk, small_disk
from tests.sizes import KVM_MIGRATIONS, MIGRATION_ROUNDS, QEMU_VERSIONS, WAYS

pytestmark = pytest.mark.live

FATES = ("nothing", "source", "destination", "cut", "no space")
ODDS = (45, 10, 20, 15, 10)

# Eight in all in CI: each way but one, on both QEMUs, and from one to the other and back.
CI_ROUTES = [
    (["10.0", "10.0", "10.0", "10.0"], ["fd", "file", "postcopy"]),
    (["7.2", "7.2", "7.2", "7.2"], ["multifd", "tcp", "postcopy"]),
    (["7.2", "10.0", "7.2"], ["unix", "fd"]),
]


@pytest.mark.bound(120)
@pytest.mark.parametrize(
    ("versions", "ways"), CI_ROUTES, ids=["-".join(versions) for versions, _ in CI_ROUTES]
)
async def test_there_and_back(versions: Sequence[str], ways: Sequence[str], tmp_path: Path) -> None:
    """Back with its disk, which is written to all the time."""
    disk, new = tmp_path / "disk.qcow2", tmp_path / "new"
    new.mkdir()
    qemus = [binaries()[version] for version in versions]
    async with leaks(), AsyncExitStack() as stack:
        vm: VM = await stack.enter_async_context(keeping_a_ledger(qemus[0], disk))
        had = 0
        places: tuple[DiskPlaces, ...] = ("shared", new, "shared")
        for qemu, way, disks in zip(qemus[1:], ways, places[: len(ways)], strict=True):
            receiving = qmpkit.receiving(vm, qemu=qemu, disks=disks)
            destination = await stack.enter_async_context(receiving)
            policy = "postcopy" if way == "postcopy" else "live"
            await vm.migrate(destination, policy=policy, options=options_for(way, tmp_path))
            assert vm.report is not None and vm.report.expected
            vm = destination.vm
            had = await whole(vm, had)
        had = await acknowledged(vm)
    assert 2 < await records(disk) < had <= await records(new / disk.name)


Strike = Callable[[], object]


class Fate:
    """A policy that lets QEMU do as it likes, but for a *strike* at one of the first looks."""

    def __init__(self, dice: random.Random, strike: Strike | None) -> None:
        self._strike = strike
        self._looks = dice.randint(1, 3)

    def __call__(self, now: Round) -> Step:
        self._looks -= 1
        if self._looks == 0 and self._strike is not None:
            self._strike()
        return Step(downtime=0.3)


@pytest.mark.skipif(not MIGRATION_ROUNDS, reason="hours of migrations: with --long")
@pytest.mark.bound(7200)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_again_and_again(qemu: str, way: str, tmp_path: Path) -> None:
    """Its disk goes along or stays, and by dice one of five things happens, or nothing."""
    dice, left = random.Random(way), MIGRATION_ROUNDS
    with small_disk(tmp_path / "small", mib=8) as small:
        while left > 0:
            async with leaks():
                life = Life(qemu, way, dice, tmp_path, small)
                left = await life.rounds(left)
            assert await records(life.disk) >= life.had
            life.disk.unlink()
            assert not list(small.path.iterdir())


class Life:
    """Of one guest, from its start until it is killed or all is done."""

    def __init__(
        self, qemu: str, way: str, dice: random.Random, folder: Path, small: SmallDisk
    ) -> None:
        self.had = 0
        self._qemu, self._dice = qemu, dice
        self._options = options_for(way, folder)
        self._small = small
        self.disk = folder / "disk.qcow2"

    async def rounds(self, left: int) -> int:
        """So many migrations at most; how many are left after this life."""
        try:
            async with AsyncExitStack() as stack:
                vm: VM = await stack.enter_async_context(keeping_a_ledger(self._qemu, self.disk))
                while left > 0:
                    left -= 1
                    vm = await self._moved(stack, vm)
        except MachineDied:
            return left
        return left

    async def _moved(self, stack: AsyncExitStack, vm: VM) -> VM:
        self.had = await whole(vm, self.had)
        name = f"disk{self._dice.getrandbits(32)}.qcow2"
        goes, fate = self._dice.random() < 0.5, self._dice.choices(FATES, ODDS)[0]
        new = (self._small.path if fate == "no space" else self.disk.parent) / name
        goes = goes or fate == "no space"
        disks: DiskPlaces = {vm.spec.disks[-1].id: new} if goes else "shared"
        destination = await stack.enter_async_context(qmpkit.receiving(vm, disks=disks))
        if fate == "no space":  # any more, for as long as it would be needed
            self._small.fill()
        try:
            await self._struck(vm, destination, fate)
        except MigrationFailed:
            if fate == "no space":
                self._small.free()
            self.had = await whole(vm, self.had)
            return vm
        assert fate != "no space"
        if goes:
            self.disk, old = new, self.disk
            old.unlink()
        self.had = await whole(destination.vm, self.had)
        return destination.vm

    async def _struck(self, vm: VM, destination: Destination, fate: str) -> None:
        cut = trio.Event()
        pids = {"source": vm.pid, "destination": destination.machine.child.pid}

        async def break_connection() -> None:
            await cut.wait()
            with suppress(CommandRefused, MachineGone, MachineDied):  # it is over, or has none
                await vm.execute("yank", {"instances": [{"type": "migration"}]})

        strike = cut.set if fate == "cut" else None
        if fate in pids:
            strike = partial(os.kill, pids[fate], signal.SIGKILL)
        policy = Fate(self._dice, strike)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(break_connection)
                await vm.migrate(destination, options=self._options, policy=policy)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise_failed(group)


@pytest.mark.kvm
@pytest.mark.usefixtures("kvm_here")
async def test_under_kvm(qemu: str) -> None:
    guests.build_kvm_tiny()
    spec = attrs.evolve(qmpkit.load_profile("kvm-tiny"), qemu=qemu, accel="kvm")
    async with leaks(), AsyncExitStack() as stack:
        vm: VM = await stack.enter_async_context(qmpkit.running(spec))
        await vm.console.expect(".")
        for _ in range(KVM_MIGRATIONS):
            had = await counted(vm)
            destination = await stack.enter_async_context(qmpkit.receiving(vm))
            await vm.migrate(destination)
            vm = destination.vm
            assert await counted(vm) >= had
            await vm.console.expect(".")
