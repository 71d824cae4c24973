"""What a guest may read and write each second: at start, live, after a restart and a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

import qmpkit
from qmpkit import IoLimits, SpecInvalid
from qmpkit.machine.ledger import Change
from qmpkit.operations.block.layers import with_disks
from qmpkit.operations.block.recovery import recover
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.blocks import bare, told
from tests.live.kept import Places, end_all, lab
from tests.sizes import NEWEST, OLDEST

pytestmark = pytest.mark.live

EVERY = IoLimits(
    bps_rd="64MiB",
    bps_wr="32MiB",
    iops=500,
    bps_rd_max="128MiB",
    iops_max=1000,
    iops_max_length=5,
    iops_size=4096,
)
FIELDS = ("bps_rd", "bps_wr", "iops", "bps_rd_max", "iops_max", "iops_max_length", "iops_size")


def limited(spec: qmpkit.MachineSpec, limits: IoLimits | None) -> qmpkit.MachineSpec:
    return with_disks(spec, [attrs.evolve(spec.disks[0], limits=limits)])


@pytest.mark.qemus(*OLDEST)
async def test_a_start_has_those_of_the_spec_and_each_change_is_in_it(
    qemu: str, tmp_path: Path
) -> None:
    wanted = [getattr(EVERY, name) for name in FIELDS]
    async with leaks():
        spec = limited(bare(qemu, tmp_path, "qcow2", "raw"), EVERY)
        async with qmpkit.running(spec, paused=True) as vm:
            assert await told(vm, *FIELDS) == wanted
            await vm.snapshots.take("one")
            await vm.disks.move("disk0", tmp_path / "moved.qcow2")
            assert await told(vm, *FIELDS) == wanted, "they are the drive's, not the layer's"
            await vm.disks.limit("disk0", IoLimits(bps="1MiB"))
            await vm.disks.limit("disk1", EVERY)
            with pytest.raises(SpecInvalid, match=r"iops_max: is of use only with iops"):
                await vm.disks.limit("disk0", IoLimits(iops_max=7))
            with pytest.raises(SpecInvalid, match="no disk 'disk9'"):
                await vm.disks.limit("disk9", None)
            spec = vm.spec
        async with qmpkit.running(spec, paused=True) as vm:
            assert await told(vm, "bps", *FIELDS) == [1 << 20, *[0] * len(FIELDS)]
            assert await told(vm, *FIELDS, disk="disk1") == wanted
            await vm.disks.limit("disk0", None)
            assert vm.spec.disks[0].limits is None
            assert await told(vm, "bps") == [0]


@pytest.mark.qemus(*NEWEST)
async def test_cancelled_what_holds_is_in_the_spec(qemu: str, tmp_path: Path) -> None:
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        number = 0

        async def limit() -> None:
            nonlocal number
            number += 1
            await vm.disks.limit("disk0", IoLimits(iops=number))

        async def after() -> None:
            limits = vm.spec.disks[0].limits
            assert await told(vm, "iops") == [limits.iops if limits else 0]

        assert await cancel_at_every_checkpoint(limit, after=after) > 3


@pytest.mark.qemus(*NEWEST)
async def test_a_change_that_nobody_ended_is_taken_back(qemu: str, tmp_path: Path) -> None:
    async with qmpkit.running(bare(qemu, tmp_path, "qcow2"), paused=True) as vm:
        begun = vm.spec
        await vm.disks.limit("disk0", IoLimits(iops=7))
        change = Change(what="limit", spec=vm.spec, begun=begun, sure=True)
        assert await recover(vm.machine, change) == begun
        assert await told(vm, "iops") == [0]


@pytest.mark.qemus(*NEWEST)
@pytest.mark.usefixtures("places")
async def test_a_kept_machines_record_has_them(qemu: str, places: Places, tmp_path: Path) -> None:
    async with leaks():
        spec = bare(qemu, tmp_path, "qcow2")
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, paused=True)
            assert kept.vm is not None
            await kept.vm.disks.limit("disk0", EVERY)
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, paused=True)
            vm: Any = kept.vm
            assert await told(vm, "iops") == [500]
            await supervisor.declare("bare", "stopped")
            kept = await supervisor.declare("bare", "paused")
            vm = kept.vm
            assert await told(vm, "iops") == [500]
        await end_all()
