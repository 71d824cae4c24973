"""Memory and processors come and go; host, QEMU, guest and spec agree after each step."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import (
    VM,
    Cpu,
    GuestRefused,
    HostLacks,
    MachineSpec,
    Memory,
    SpecInvalid,
    UnplugRefused,
    VirtioMem,
)
from qmpkit.testing import guests
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from tests.live.plugged import agreed
from tests.live.plugged_views import BLOCK, restarted, roomy
from tests.sizes import LONG, RESOURCE_CANCELS, share

pytestmark = pytest.mark.live

MIB = 1 << 20


async def memory_agrees(vm: VM, *, guest: bool = True) -> None:
    """QEMU has the modules of the spec, and the guest will have their memory in a moment."""
    await agreed(vm)
    dimms = vm.spec.memory.dimms
    found = {it["data"]["id"]: it["data"] for it in await vm.execute("query-memory-devices")}
    assert {it.id: (it.size, it.address) for it in dimms} == {
        name: (it["size"], it["addr"]) for name, it in found.items()
    }
    summary = await vm.execute("query-memory-size-summary")
    assert summary["base-memory"] + summary["plugged-memory"] == vm.spec.memory.total
    if not guest:
        return
    blocks = 2 + sum(dimm.size // BLOCK for dimm in dimms)
    look = (
        f"until [ $(grep -l online /sys/devices/system/memory/memory*/state | wc -l) = {blocks} ];"
        " do usleep 20000; done; grep MemTotal /proc/meminfo"
    )
    with trio.fail_after(20):
        told = await vm.agent.run(["sh", "-c", look])
    total = int(told.text.split()[1]) * 1024
    assert 0 < vm.spec.memory.total - total < BLOCK, (told.text, dimms)  # the kernel's own


@pytest.mark.qemus(*share(0))
async def test_memory_comes_and_goes(qemu: str) -> None:
    async with guests.booted(roomy(qemu)) as vm:
        one = await vm.memory.add("128MiB")
        two = await vm.memory.add(2 * BLOCK)
        assert (one.id, two.id) == ("dimm0", "dimm1") and one.address and two.address
        await memory_agrees(vm)
        for size, words in (("128MiB", "3 modules .* do not fit in 2 slots"), (1, "multiple of")):
            with pytest.raises(SpecInvalid, match=words):
                await vm.memory.add(size)
        await vm.memory.remove(one.id)
        with pytest.raises(SpecInvalid, match="leaves room for 768MiB"):
            await vm.memory.add("640MiB")
        with pytest.raises(SpecInvalid, match="no module 'dimm7'"):
            await vm.memory.remove("dimm7")
        await memory_agrees(vm)
        assert vm.memory.dimms == (two,)
        spec = vm.spec
    async with restarted(spec, boot=LONG) as vm:
        await memory_agrees(vm, guest=LONG)
        assert vm.memory.dimms == (two,), "it lies where it did"
        if LONG:
            await vm.memory.remove(two.id)
            await memory_agrees(vm)


@pytest.mark.qemus(*share(1))
async def test_a_module_that_the_guest_uses(qemu: str) -> None:
    async with guests.booted(roomy(qemu)) as vm:
        kernels = "echo online_kernel >/sys/devices/system/memory/auto_online_blocks"
        await vm.agent.run(["sh", "-c", kernels], check=True)
        dimm = await vm.memory.add("128MiB")
        await memory_agrees(vm)
        fill = "mkdir /x; cd /x; seq 5000 | xargs mkdir"
        await vm.agent.run(["sh", "-c", fill], check=True)
        with pytest.raises(UnplugRefused, match="it is in use"):
            await vm.memory.remove(dimm.id)
        await memory_agrees(vm)


@pytest.mark.bound(60 + 300 // RESOURCE_CANCELS)
@pytest.mark.qemus(*share(0))
async def test_memory_cancelled_leaves_nothing(qemu: str) -> None:
    async with guests.booted(roomy(qemu)) as vm:

        async def nothing() -> None:
            for dimm in vm.memory.dimms:
                await vm.memory.remove(dimm.id)
            await memory_agrees(vm)

        async def add() -> None:
            await vm.memory.add("128MiB")

        runs = await cancel_at_every_checkpoint(add, every=RESOURCE_CANCELS, after=nothing)
        assert runs > 1


@pytest.mark.qemus(*share(1))
async def test_the_balloon(qemu: str) -> None:
    async with restarted(roomy(qemu), boot=True) as vm:
        use = await vm.memory.statistics()
        assert use.total and use.free and 128 * MIB < use.total < 256 * MIB > use.free
        await vm.memory.balloon("192MiB")
        assert await vm.memory.balloon_size() == 192 * MIB
        if LONG:
            less = await vm.memory.statistics()
            assert less.free and less.free < use.free - 32 * MIB
        with pytest.raises(SpecInvalid, match="not from 1MiB to 256MiB"):
            await vm.memory.balloon("1GiB")
        async with vm.paused():
            with pytest.raises(GuestRefused, match="stands still"):
                await vm.memory.balloon("128MiB")
            with pytest.raises(GuestRefused, match=r"nothing within 0\.2 s"):
                await vm.memory.statistics(grace=0.2)
        with pytest.raises(GuestRefused, match=r"within 0 s"):
            await vm.memory.balloon("64MiB", grace=0)
        with trio.fail_after(20):
            while await vm.memory.balloon_size() != 192 * MIB:  # noqa: ASYNC110  # told to, it is
                await trio.sleep(0.05)
        assert vm.spec.memory.total == 256 * MIB, "a restart begins with all of it"


@pytest.mark.qemus(*share(1))
async def test_a_view_of_a_file_gives_nothing_of_it_back(qemu: str, tmp_path: Path) -> None:
    """As a clone's of its template, which has no balloon; a spec by hand may."""
    ram = tmp_path / "ram"
    with ram.open("wb") as file:
        file.truncate(64 * MIB)
    memory = Memory(64 * MIB, mem_path=ram)
    spec = MachineSpec(name="view", qemu=qemu, accel="tcg", memory=memory, balloon=True)
    async with qmpkit.running(spec) as vm:
        with pytest.raises(SpecInvalid, match=r"cut what the guest gives back out of '.*/ram'"):
            await vm.memory.balloon("32MiB")
        assert await vm.memory.balloon_size() == 64 * MIB


@pytest.mark.qemus(*share(0))
async def test_memory_that_grows_and_shrinks(qemu: str) -> None:
    async with guests.booted(roomy(qemu)) as vm:
        with pytest.raises(SpecInvalid, match="no virtio-mem device"):
            await vm.memory.resize("128MiB")
        with pytest.raises(SpecInvalid, match=r"more than memory\.maxmem"):
            await vm.devices.add(VirtioMem(size="1GiB"))
        device = await vm.devices.add(VirtioMem(size="512MiB"))
        assert isinstance(device, VirtioMem) and device.id == "vmem0" and device.address
        grown = await vm.memory.resize("128MiB")
        assert grown.requested == BLOCK and grown in vm.spec.devices
        await grown_agrees(vm, grown)
        for size, words in (("1GiB", "more than the size, 512MiB"), (MIB, "whole number")):
            with pytest.raises(SpecInvalid, match=words):
                await vm.memory.resize(size)
        with pytest.raises(SpecInvalid, match="its guest uses 128MiB of it"):
            await vm.devices.remove("vmem0")
        async with vm.paused():
            with pytest.raises(GuestRefused, match="stands still"):
                await vm.memory.resize(0)
        spec = vm.spec
    async with restarted(spec, boot=LONG) as vm:
        assert grown in vm.spec.devices
        await agreed(vm)
        if LONG:
            await grown_agrees(vm, grown)
            await vm.memory.resize(0)
            await grown_agrees(vm, attrs.evolve(grown, requested=0))
            if "10.0" in qemu:
                await vm.devices.remove("vmem0")
                assert not vm.spec.devices
            else:
                with pytest.raises(HostLacks, match=r"does not take 'vmem0' away"):
                    await vm.devices.remove("vmem0", grace=1)
            await agreed(vm)


@pytest.mark.bound(60 + 600 // RESOURCE_CANCELS)
@pytest.mark.qemus(*share(0))
async def test_a_resize_cancelled_is_taken_back(qemu: str) -> None:
    async with guests.booted(roomy(qemu)) as vm:
        await vm.devices.add(VirtioMem(size="256MiB"))

        async def grow() -> None:
            await vm.memory.resize("128MiB")

        async def as_the_spec_says() -> None:
            (device,) = (it for it in vm.spec.devices if isinstance(it, VirtioMem))
            await grown_agrees(vm, device)
            if device.requested:
                await vm.memory.resize(0)

        assert await cancel_at_every_checkpoint(
            grow, every=RESOURCE_CANCELS, after=as_the_spec_says
        )


async def grown_agrees(vm: VM, device: VirtioMem) -> None:
    """QEMU and the spec have it like that, and the guest will in a moment."""
    await agreed(vm)
    assert device in vm.spec.devices
    (found,) = await vm.execute("query-memory-devices")
    with trio.fail_after(20):
        while found["data"]["size"] != device.requested:
            await trio.sleep(0.02)
            (found,) = await vm.execute("query-memory-devices")
        at = f"{found['data']['id']}"
    assert (at, found["data"]["memaddr"]) == (device.id, device.address)
    assert found["data"]["requested-size"] == device.requested


async def cpus_agree(vm: VM, *, online: int) -> None:
    """QEMU, its process, the guest (unless it stands) and the spec have the same processors."""
    there = {it.number: it for it in await vm.cpus.list() if it.is_there}
    cpu = vm.spec.cpu
    assert sorted(there) == [*range(cpu.cpus), *cpu.added]
    assert {it.id for it in there.values()} - {""} == {f"cpu{n}" for n in cpu.added}
    fast = {it["cpu-index"]: it["thread-id"] for it in await vm.execute("query-cpus-fast")}
    assert fast == {number: it.thread for number, it in there.items()}
    tasks = {int(name) for name in os.listdir(f"/proc/{vm.pid}/task")}  # noqa: PTH208
    assert set(fast.values()) <= tasks
    if not online:
        return
    look = (
        f"until [ $(ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l) = {cpu.present} ]; do "
        "usleep 20000; done; grep -c ^processor /proc/cpuinfo"
    )
    with trio.fail_after(20):
        told = await vm.agent.run(["sh", "-c", look])
    assert told.text.split() == [str(online)]


@pytest.mark.qemus(*share(0))
async def test_processors_come(qemu: str) -> None:
    last = max(os.sched_getaffinity(0))
    async with guests.booted(roomy(qemu)) as vm:
        await vm.tune.pin(["", "", str(last), ""])
        (one,) = await vm.cpus.add(core=2)
        assert (one.number, one.id) == (2, "cpu2") and one.thread
        assert os.sched_getaffinity(one.thread) == {last}
        await vm.tune.pin(None)
        await cpus_agree(vm, online=1)
        with pytest.raises(SpecInvalid, match="empty at socket 0, core 2"):
            await vm.cpus.add(socket=0, core=2)
        with pytest.raises(SpecInvalid, match=r"leaves 2 empty places .*maxcpus = 8"):
            await vm.cpus.add(3)
        with pytest.raises(HostLacks, match="dies of a CPU that goes"):
            await vm.cpus.remove(one.id)
        with pytest.raises(SpecInvalid, match="no processor 'cpu0' that was added"):
            await vm.cpus.remove("cpu0")
        (lowest,) = await vm.cpus.add(online=True)
        assert lowest.id == "cpu1"
        await cpus_agree(vm, online=3)
        spec = vm.spec
        assert spec.cpu.added == (1, 2)
    async with restarted(spec, boot=LONG) as vm:
        await cpus_agree(vm, online=3 if LONG else 0)


@pytest.mark.bound(60 + 300 // RESOURCE_CANCELS)
@pytest.mark.qemus(*share(1))
async def test_a_processor_cancelled_is_there_or_not(qemu: str) -> None:
    spec = attrs.evolve(roomy(qemu), cpu=Cpu(1, 64))
    async with qmpkit.running(spec, paused=True) as vm:

        async def add() -> None:
            await vm.cpus.add()

        async def known() -> None:
            there = {it.number for it in await vm.cpus.list() if it.is_there}
            assert there == {0, *vm.spec.cpu.added}

        runs = await cancel_at_every_checkpoint(add, every=RESOURCE_CANCELS, after=known)
        assert runs


@pytest.mark.qemus(*share(0))
async def test_a_processor_goes_where_that_is_asked_for(qemu: str) -> None:
    """Once, and last: QEMU under TCG may die of the next plug."""
    async with guests.booted(roomy(qemu)) as vm:
        (one,) = await vm.cpus.add(online=True)
        await vm.cpus.remove(one.id, unsafe=True)
        await cpus_agree(vm, online=1)


async def test_boards_without_hotplug(qemu: str) -> None:
    spec = MachineSpec(name="micro", machine="microvm", qemu=qemu, accel="tcg", memory="64MiB")
    async with qmpkit.running(spec, paused=True) as vm:
        with pytest.raises(SpecInvalid, match="microvm has no memory hotplug"):
            await vm.memory.add("128MiB")
        with pytest.raises(SpecInvalid, match="microvm has no processor hotplug"):
            await vm.cpus.add()
        with pytest.raises(SpecInvalid, match="balloon = true"):
            await vm.memory.balloon("32MiB")
    async with qmpkit.running(attrs.evolve(spec, machine="q35"), paused=True) as vm:
        with pytest.raises(SpecInvalid, match=r"no slots .*slots = 8"):
            await vm.memory.add("128MiB")
