"""What would change a machine while it moves is refused at once, and welcome when it stays."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

import qmpkit
from qmpkit import VM, Disk, MachineMoving, Rng
from qmpkit.testing.leaks import leaks
from tests.live.kept import Places, end_all, lab
from tests.live.migrating import SLOW, counting, still_here
from tests.live.receiving import door, end_both, other, runs_on

pytestmark = pytest.mark.live


async def refused(asked: Callable[[], Awaitable[object]], where: str) -> None:
    with trio.fail_after(5), pytest.raises(MachineMoving) as moving:
        await asked()
    assert moving.value.place == where
    assert str(moving.value).startswith(f"machine 'mover' is moving to {where}, and neither")


async def changes_refused(vm: VM, folder: Path, where: str) -> None:
    disk = Disk(str(folder / "more.img"), format="raw", make="1MiB")
    for asked in (
        partial(vm.disks.add, disk),
        partial(vm.devices.add, Rng()),
        partial(vm.snapshots.take, "now"),
        partial(vm.backups.run, folder / "backups"),
    ):
        await refused(asked, where)


async def test_nothing_is_changed_while_it_moves(qemu: str, tmp_path: Path) -> None:
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        async with qmpkit.receiving(vm) as destination, qmpkit.receiving(vm) as second:
            with trio.CancelScope() as scope:
                async with vm.migrating(destination, options=SLOW) as migration:
                    assert (await anext(migration)).remaining
                    await changes_refused(vm, tmp_path, "another QEMU")
                    await refused(partial(vm.migrate, second), "another QEMU")
                    scope.cancel()
        await vm.snapshots.take("now")
        await vm.snapshots.delete("now")
        await still_here(vm, 1)


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_nor_is_a_kept_one(
    qemu: str, places: Places, tmp_path: Path, elsewhere: bool
) -> None:
    async with leaks():
        async with lab() as here, other() as there, door(tmp_path / "d", there.receive) as to:
            kept = await here.ensure(counting(qemu, tmp_path))
            had, vm, going = await runs_on(kept, 0), kept.vm, trio.Event()
            assert vm is not None
            move = partial(here.migrate, "mover", to=to if elsewhere else None, options=SLOW)
            where = to if elsewhere else "another QEMU"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(move, progress=lambda _: going.set()))
                await going.wait()
                await changes_refused(vm, tmp_path, where)
                await refused(move, where)
                nursery.cancel_scope.cancel()
            await vm.snapshots.take("now")
            await vm.snapshots.delete("now")
            await runs_on(kept, had)
        await end_both()
        await end_all()
