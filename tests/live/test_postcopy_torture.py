"""A guest that writes faster than it is sent moves by postcopy, and not a byte of it is lost."""

from __future__ import annotations

import os
import random
import signal
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import (
    VM,
    Destination,
    MachineGone,
    MigrationLost,
    MigrationOptions,
    Round,
    State,
    postcopy,
)
from qmpkit._trio import raise_collapsed
from qmpkit.qmp.errors import CommandRefused
from qmpkit.testing.leaks import leaks
from tests.live.ledger_guest import acknowledged, keeping_a_ledger, records, whole
from tests.live.relay import phases
from tests.sizes import POSTCOPY_ROUNDS, QEMU_VERSIONS

pytestmark = pytest.mark.live

# `churn` is written faster than that, so it would never arrive otherwise.
SLOW = MigrationOptions(way="unix", max_bandwidth="16MiB", downtime=0.001)


class Life:
    """Of one guest, from its start until it is lost or all is done; `had`: its records."""

    def __init__(self, dice: random.Random) -> None:
        self.had = 0
        self.cuts = self.losses = self.moves = 0
        self._dice = dice

    async def rounds(self, qemu: str, disk: Path, left: int) -> int:
        """So many migrations at most; how many are left after this life."""
        async with AsyncExitStack() as stack:
            vm: VM = await stack.enter_async_context(keeping_a_ledger(qemu, disk))
            while left > 0:
                left -= 1
                self.had = await whole(vm, self.had)
                destination = await stack.enter_async_context(qmpkit.receiving(vm))
                try:
                    await self._move(vm, destination)
                except MigrationLost:
                    self.losses += 1
                    assert vm.report is not None and destination.machine.report is not None
                    return left
                vm = destination.vm
            self.had = await whole(vm, self.had)
            self.had = await acknowledged(vm)
        return left

    async def _move(self, vm: VM, destination: Destination) -> None:
        luck = self._dice.random()
        seen: list[Round] = []
        options = SLOW if luck < 0.7 else attrs.evolve(SLOW, way="fd", max_bandwidth=None)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._befall, luck, vm, destination)
                await vm.migrate(
                    destination,
                    policy=postcopy(after=self._dice.randint(0, 2)),
                    options=options,
                    progress=seen.append,
                )
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise_collapsed(group)
        self.moves += 1
        print(f"{self.moves} of this life, {phases(seen)}", flush=True)
        self.cuts += "cut" in phases(seen)

    async def _befall(self, luck: float, vm: VM, destination: Destination) -> None:
        """Once it runs there: an end is killed, or the connection cut, or nothing."""
        await destination.machine.reached(State.RUNNING)
        if luck < 0.05:
            os.kill(destination.machine.child.pid, signal.SIGKILL)
        elif luck < 0.1:
            assert vm.pid is not None
            os.kill(vm.pid, signal.SIGKILL)
        elif luck < 0.6:
            await trio.sleep(self._dice.random() / 10)
            with suppress(CommandRefused, MachineGone):  # it was over before
                await vm.machine.execute("yank", {"instances": [{"type": "migration"}]}, oob=True)


@pytest.mark.skipif(not POSTCOPY_ROUNDS, reason="an hour of migrations: with --long")
@pytest.mark.bound(7200)
@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_again_and_again(qemu: str, tmp_path: Path) -> None:
    dice, left, disk = random.Random(qemu), POSTCOPY_ROUNDS, tmp_path / "disk.qcow2"
    lives: list[Life] = []
    while left > 0:
        disk.unlink(missing_ok=True)
        lives.append(Life(dice))
        async with leaks():
            left = await lives[-1].rounds(qemu, disk, left)
        assert await records(disk) >= lives[-1].had
    moves, cuts = (sum(getattr(life, what) for life in lives) for what in ("moves", "cuts"))
    losses = sum(life.losses for life in lives)
    print(f"{moves} moves, {cuts} of them cut and made anew, {losses} guests lost with an end")
    assert moves and cuts
