"""Machines that move to another QEMU while they run, by every way there is."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

import qmpkit
from qmpkit import (
    CannotMigrate,
    Disk,
    MigrationFailed,
    MigrationOptions,
    NotArrived,
    Round,
    SpecInvalid,
    State,
    Step,
    UserNic,
)
from qmpkit.testing.leaks import leaks
from tests.conftest import binaries
from tests.live.blocks import holds, write
from tests.live.counting import counted
from tests.live.migrating import counting, lives_on, options_for
from tests.sizes import MIGRATION_WAYS, NEWEST, OLDEST, QEMU_VERSIONS

pytestmark = pytest.mark.live


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.qemus(*QEMU_VERSIONS)
@pytest.mark.parametrize("way", MIGRATION_WAYS)
async def test_there_by_every_way(qemu: str, way: str, tmp_path: Path) -> None:
    seen: list[Round] = []
    async with leaks():
        async with qmpkit.running(counting(qemu, tmp_path)) as vm:
            await vm.console.expect(".")
            await write(vm, "disk0", 0, 5)
            had = await counted(vm)
            async with qmpkit.receiving(vm) as destination:
                with pytest.raises(NotArrived):
                    _ = destination.vm
                options = options_for(way, tmp_path)
                took = await vm.migrate(destination, options=options, progress=seen.append)
                assert vm.state is State.GONE and vm.report is not None
                assert str(vm.report).startswith("its guest has migrated")
                assert 0 < took.downtime < took.seconds and took.passes >= 1
                await lives_on(destination.vm, had)
                spec = attrs.evolve(destination.vm.spec, qemu=vm.spec.qemu)
                assert spec == vm.spec
            assert destination.vm.state is State.GONE
        assert names_in(tmp_path) == ["qcow2.img", "raw.img"]
    for kind in ("qcow2", "raw"):
        await holds(str(tmp_path / f"{kind}.img"), kind, {3: 7})
    await holds(str(tmp_path / "qcow2.img"), "qcow2", {0: 5})
    assert seen[-1].remaining == 0 and seen[-1].transferred == took.transferred > 0


async def test_to_another_version_and_back(tmp_path: Path) -> None:
    old, new = (binaries()[version] for version in QEMU_VERSIONS)
    async with leaks(), qmpkit.running(counting(old, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm, qemu=new) as there:
            await vm.migrate(there)
            await lives_on(there.vm, had)
            assert (there.vm.spec.qemu, there.vm.argv[0]) == (new, new)
            async with qmpkit.receiving(there.vm, qemu=old) as back:
                await there.vm.migrate(back)
                await lives_on(back.vm, had)
                assert back.vm.spec == vm.spec


@pytest.mark.qemus(*QEMU_VERSIONS)
async def test_a_guest_that_stands_still_does_so_there(qemu: str, tmp_path: Path) -> None:
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        await vm.pause()
        had = await counted(vm)
        async with qmpkit.receiving(vm) as destination:
            took = await vm.migrate(destination)
            there = destination.vm
            assert took.downtime == 0.0
            assert there.state is State.PAUSED and await counted(there) == had
            await write(there, "disk0", 0, 5)  # the images are its
            await there.resume()
            await lives_on(there, had)


async def test_a_guest_that_never_ran_moves_too(qemu: str, tmp_path: Path) -> None:
    async with (
        leaks(),
        qmpkit.running(counting(qemu, tmp_path), paused=True) as vm,
        qmpkit.receiving(vm) as destination,
    ):
        await vm.migrate(destination)
        await destination.vm.resume()
        await destination.vm.console.expect("kvm-tiny guest ready")
        await destination.vm.console.expect(".")  # it counts after that word, not before it
        await lives_on(destination.vm, 1)


async def test_ports_and_what_was_plugged_in_come_along(qemu: str, tmp_path: Path) -> None:
    nics = [UserNic(forwards=["0:22"])]
    spec = counting(qemu, tmp_path, nics=nics, root_ports=4, vmgenid="auto")
    async with leaks(), qmpkit.running(spec) as vm:
        await vm.console.expect(".")
        file = str(tmp_path / "new.qcow2")
        added = await vm.disks.add(Disk(file, format="qcow2", make="1MiB"))
        await write(vm, added.id, 0, 9)
        had, ports = await counted(vm), await vm.forwards()
        generation = await vm.execute("query-vm-generation-id")
        assert len(ports) == 1 and ports[0].port
        async with qmpkit.receiving(vm) as destination:
            assert await destination.machine.execute("query-vm-generation-id") == generation
            await vm.migrate(destination)
            there = destination.vm
            await lives_on(there, had)
            assert await there.forwards() == ports
            assert there.spec == vm.spec and there.spec.vmgenid == "auto"
    await holds(file, "qcow2", {0: 9})


@pytest.mark.qemus(*NEWEST)
async def test_a_policy_of_ones_own(qemu: str, tmp_path: Path) -> None:
    """It is asked after each pass, and what it says is done."""
    asked: list[Round] = []

    def policy(now: Round) -> Step:
        asked.append(now)
        return Step(downtime=0.5, paused=now.number > 1)

    slow = MigrationOptions(max_bandwidth="1MiB", downtime=0.001)
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm) as destination:
            await vm.migrate(destination, policy=policy, options=slow)
            await lives_on(destination.vm, had)
    assert asked and all(now.total > 0 for now in asked)
    assert asked[0].downtime == 0.001 and asked[-1].downtime in (0.001, 0.5)


async def test_somebody_looks_on(qemu: str, tmp_path: Path) -> None:
    slow = MigrationOptions(max_bandwidth="512KiB", downtime=0.001)
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm) as destination:
            with pytest.raises(MigrationFailed, match="not converged in 0 s"):
                async with vm.migrating(
                    destination,
                    policy=qmpkit.live(downtime=1, max_downtime=1, give_up_after=0),
                    options=attrs.evolve(slow, max_bandwidth="1KiB"),
                ) as migration:
                    assert [now.total > 0 async for now in migration]
        await lives_on(vm, had)
        async with qmpkit.receiving(vm) as destination:
            async with vm.migrating(destination, options=slow) as migration:
                looks = [now async for now in migration]
            assert migration.took is not None
            assert looks[-1].transferred == migration.took.transferred
            await lives_on(destination.vm, had)


@pytest.mark.qemus(*OLDEST)
async def test_all_that_is_in_the_way_is_told_before_anything_starts(
    qemu: str, tmp_path: Path
) -> None:
    async with leaks(), qmpkit.running(counting(qemu, tmp_path)) as vm:
        await vm.console.expect(".")
        raw = tmp_path / "raw.img"
        raw.rename(tmp_path / "gone")
        with pytest.raises(CannotMigrate) as told:
            async with qmpkit.receiving(vm):
                pass
        assert [fault.path for fault in told.value.faults] == ["disks[1].file"]
        (tmp_path / "gone").rename(raw)
        with pytest.raises(SpecInvalid, match="there is none called 'slow'"):
            async with qmpkit.receiving(vm) as destination:
                await vm.migrate(destination, policy="slow")
        async with qmpkit.receiving(vm) as destination:
            await vm.migrate(destination)
            with pytest.raises(NotArrived):
                await destination.vm.migrate(destination)


async def test_another_processor_is_refused(tmp_path: Path) -> None:
    old, new = (binaries()[version] for version in QEMU_VERSIONS)
    spec = counting(old, tmp_path, cpu=qmpkit.Cpu(model="max"))
    async with leaks(), qmpkit.running(spec) as vm:
        await vm.console.expect(".")
        had = await counted(vm)
        async with qmpkit.receiving(vm, qemu=new) as destination:
            with pytest.raises(CannotMigrate, match=r"another processor: CPUID\["):
                await vm.migrate(destination)
        await lives_on(vm, had)
