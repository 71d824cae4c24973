"""What a machine is given of its host, looked at from outside: pins, huge pages, policies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import (
    VM,
    Cpu,
    Disk,
    HostLacks,
    MachineSpec,
    Memory,
    NumaNode,
    Resources,
    SpecInvalid,
    farm,
)
from qmpkit.operations.tune.live import take_place
from qmpkit.process.cgroup import Group
from qmpkit.testing import guests
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.kept import end_all, lab
from tests.sizes import NEWEST

pytestmark = pytest.mark.live

EVERY = sorted(os.sched_getaffinity(0))
ALL = Path("/proc/self/status").read_text().partition("Cpus_allowed_list:")[2].split()[0]
FIRST, LAST = str(EVERY[0]), str(EVERY[-1])


def bare(qemu: str, **fields: object) -> MachineSpec:
    spec = MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB", cpu=2)
    return attrs.evolve(spec, **fields)  # type: ignore[arg-type]


def read(path: str) -> str:
    return Path(path).read_text()


def allowed(process: int, tid: int) -> str:
    text = read(f"/proc/{process}/task/{tid}/status")
    return text.partition("Cpus_allowed_list:")[2].split()[0]


async def sitting(vm: VM) -> dict[str, str]:
    """Where each sort of thread may run; of those that are many, all their places."""
    found = await vm.tune.threads()
    told = {f"vcpu{n}": allowed(found.process, tid) for n, tid in found.vcpus.items()}
    told |= {name: allowed(found.process, tid) for name, tid in found.iothreads.items()}
    rest = {allowed(found.process, tid) for tid in found.emulator}
    return told | {"emulator": "+".join(sorted(rest))}


async def test_threads_are_where_the_spec_says_before_the_guest_runs(
    qemu: str, tmp_path: Path
) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(1 << 20))
    spec = bare(
        qemu,
        cpu=Cpu(2, pin=[LAST, FIRST]),
        disks=[Disk(image, format="raw", iothread="io", aio="auto")],
        resources=Resources(emulator=FIRST, iothreads={"io": LAST}, policy="batch", nice=15),
    )
    async with leaks(), qmpkit.running(spec, paused=True) as vm:
        at = {"vcpu0": LAST, "vcpu1": FIRST, "io": LAST, "emulator": FIRST}
        assert await sitting(vm) == at
        assert vm.spec.disks[0].aio != "auto"
        threads = await vm.tune.threads()
        for tid in threads.vcpus.values():
            assert os.sched_getscheduler(tid) == os.SCHED_BATCH
            assert os.getpriority(os.PRIO_PROCESS, tid) == 15
        for tid in (*threads.emulator, *threads.iothreads.values()):
            assert os.sched_getscheduler(tid) == os.SCHED_OTHER
            assert os.getpriority(os.PRIO_PROCESS, tid) == 15


async def test_the_queues_of_a_disk_are_divided_where_qemu_can(qemu: str, tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(1 << 20))
    disk = Disk(image, format="raw", iothreads=["a", "b"], queues=4)
    spec = bare(qemu, disks=[disk], resources=Resources(iothreads={"b": LAST}))
    if "10.0" not in qemu:
        with pytest.raises(SpecInvalid, match="cannot divide a disk's queues"):
            async with qmpkit.running(spec):
                pass
        return
    async with qmpkit.running(spec, paused=True) as vm:
        told = await sitting(vm)
        assert (told["a"], told["b"]) == (ALL, LAST)


async def test_a_running_machine_is_tuned_and_its_spec_follows(qemu: str) -> None:
    async with qmpkit.running(bare(qemu), paused=True) as vm:
        free = {"vcpu0": ALL, "vcpu1": ALL, "emulator": ALL}
        assert await sitting(vm) == free
        done = await vm.tune.pin([LAST])
        assert (done.changed, done.waits) == (("cpu.pin",), ())
        assert await sitting(vm) == {**free, "vcpu0": LAST}
        assert vm.spec.cpu.pin == (LAST,)
        new = attrs.evolve(
            vm.spec,
            memory="32MiB",
            cpu=attrs.evolve(vm.spec.cpu, pin=FIRST, maxcpus=4),
            resources=Resources(emulator=LAST, cpu_max=1),
        )
        done = await vm.tune.apply(new)
        assert done.changed == ("cpu.pin", "resources.emulator")
        assert sorted(done.waits) == ["cpu.maxcpus", "memory.size", "resources.cpu_max"]
        assert await sitting(vm) == {"vcpu0": FIRST, "vcpu1": FIRST, "emulator": LAST}
        assert (vm.spec.memory.size, vm.spec.cpu.maxcpus) == (16 << 20, None)
        assert vm.spec.resources == Resources(emulator=LAST)
        await vm.tune.limit(emulator=None)
        await vm.tune.pin(None)
        assert await sitting(vm) == free
        assert vm.spec == attrs.evolve(vm.spec, cpu=attrs.evolve(vm.spec.cpu, pin=None))
        assert (await vm.tune.apply(vm.spec)).changed == ()
        with pytest.raises(HostLacks, match="no control group of its own"):
            await vm.tune.pressure()


async def test_placed_by_itself(qemu: str) -> None:
    count = len(EVERY)
    async with qmpkit.running(bare(qemu, cpu=Cpu(count, pin="auto")), paused=True) as vm:
        told = await sitting(vm)
        assert sorted(told[f"vcpu{n}"] for n in range(count)) == sorted(map(str, EVERY))
        assert vm.spec.cpu.pin == tuple(told[f"vcpu{n}"] for n in range(count))
        await vm.tune.pin(None)
        await vm.tune.pin("auto")
        told = await sitting(vm)
        assert sorted(told[f"vcpu{n}"] for n in range(count)) == sorted(map(str, EVERY))
    with pytest.raises(HostLacks, match="no NUMA node fits for cpu"):
        async with qmpkit.running(bare(qemu, cpu=Cpu(count + 1, pin="auto"))):
            pass


@pytest.mark.qemus(*NEWEST)
async def test_what_cannot_be_changes_nothing(qemu: str) -> None:
    async with qmpkit.running(bare(qemu, cpu=Cpu(2, pin=FIRST)), paused=True) as vm:
        before, spec = await sitting(vm), vm.spec
        with pytest.raises(SpecInvalid, match="this host has no processor 4000"):
            await vm.tune.pin("4000")
        with pytest.raises(SpecInvalid, match="is from -20 to 19, not 40"):
            await vm.tune.limit(nice=40)
        for wrong in ({"cpu_max": "1.5"}, {"nice": "5"}, {"memory_max": [1]}, {"io_max": 7}):
            with pytest.raises(SpecInvalid, match=r"resources\b"):
                await vm.tune.limit(**wrong)
        with pytest.raises(SpecInvalid, match=r"resources\.cpumax: unknown key .*'cpu_max'"):
            await vm.tune.limit(cpumax=1)
        for nonsense in (7, None, "cpu", {"cpu": 1}):
            with pytest.raises(SpecInvalid, match="a machine is a MachineSpec"):
                await vm.tune.apply(nonsense)  # type: ignore[arg-type]
        with pytest.raises(SpecInvalid, match=r"cpu\.pin"):
            await vm.tune.pin(7)  # type: ignore[arg-type]
        for count in ("2", 1.5, True, None):
            with pytest.raises(SpecInvalid, match=f"at least 1 is added, not {count!r}"):
                await vm.cpus.add(count)  # type: ignore[arg-type]
        with pytest.raises(SpecInvalid, match="socket: cannot be '0'"):
            await vm.cpus.add(socket="0")  # type: ignore[arg-type]
        assert await sitting(vm) == before
        assert vm.spec == spec


@pytest.mark.qemus(*NEWEST)
async def test_cancelled_it_is_done_or_undone(qemu: str) -> None:
    async with qmpkit.running(bare(qemu), paused=True) as vm:

        async def agrees() -> None:
            told, spec = await sitting(vm), vm.spec
            at = LAST if spec.cpu.pin else ALL
            assert (told["vcpu0"], told["vcpu1"]) == (at, at)
            assert told["emulator"] == (spec.resources.emulator or ALL)
            await vm.tune.apply(
                attrs.evolve(spec, cpu=attrs.evolve(spec.cpu, pin=None), resources=Resources())
            )

        async def tune() -> None:
            cpu = attrs.evolve(vm.spec.cpu, pin=LAST)
            resources = Resources(emulator=FIRST)
            await vm.tune.apply(attrs.evolve(vm.spec, cpu=cpu, resources=resources))

        assert await cancel_at_every_checkpoint(tune, after=agrees) > 5


@pytest.mark.qemus(*NEWEST)
@pytest.mark.usefixtures("places")
async def test_a_kept_machine_has_it_again(qemu: str) -> None:
    async with lab() as first:
        kept = await first.ensure(bare(qemu, cpu=Cpu(2, pin=[FIRST])))
        assert kept.vm is not None
        assert (await sitting(kept.vm))["vcpu0"] == FIRST
        await kept.vm.tune.pin([LAST])
        await kept.vm.tune.limit(nice=19)
        threads = await kept.vm.tune.threads()
    os.sched_setaffinity(threads.vcpus[0], EVERY)  # as if it had died before it was done
    async with lab() as second:
        kept = second.kept["bare"]
        await kept.wait_running()
        assert kept.vm is not None
        assert kept.spec.cpu.pin == (LAST,)
        while (await sitting(kept.vm))["vcpu0"] != LAST:
            await kept.vm.execute("query-status")
        await second.declare("bare", "stopped")
        await second.declare("bare", "running")
        assert kept.vm is not None
        assert (await sitting(kept.vm))["vcpu0"] == LAST
        assert kept.vm.spec.resources.nice == 19
        assert os.getpriority(os.PRIO_PROCESS, (await kept.vm.tune.threads()).vcpus[1]) == 19
    await end_all()


FARM = """
schema = 1
[machines.one]
qemu = "{qemu}"
accel = "tcg"
memory = "16MiB"
cpu = {{ cpus = 2, pin = {pin} }}
resources = {{ nice = {nice} }}
"""


@pytest.mark.qemus(*NEWEST)
@pytest.mark.usefixtures("places")
async def test_a_farms_file_changes_it_while_it_runs(qemu: str, tmp_path: Path) -> None:
    file = tmp_path / "farm.toml"

    async def up(pin: str, nice: int) -> tuple[str, VM]:
        file.write_text(FARM.format(qemu=qemu, pin=pin, nice=nice))
        (result,) = (await farm.up(supervisor, qmpkit.load_farm(file))).machines.values()
        vm = supervisor.kept["one"].vm
        assert vm is not None
        return result.did, vm

    async with lab() as supervisor:
        did, vm = await up('"auto"', 18)
        auto, pid = (await sitting(vm))["vcpu1"], vm.pid
        assert did == "added"
        did, vm = await up('"auto"', 19)
        assert (did, (await sitting(vm))["vcpu1"]) == ("changed", auto)
        assert os.getpriority(os.PRIO_PROCESS, vm.pid) == 19
        did, vm = await up(f'"{LAST}"', 19)
        assert (did, (await sitting(vm))["vcpu0"], vm.pid) == ("changed", LAST, pid)
        assert supervisor.kept["one"].spec.cpu.pin == LAST
        did, vm = await up(f'"{LAST}"', 19)
        assert did == "unchanged"
    await end_all()


POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


def free_pages() -> int:
    text = read("/proc/meminfo")
    return int(text.partition("HugePages_Free:")[2].split()[0])


@pytest.fixture
def reserved() -> Iterator[int]:
    """Sixteen huge pages more than there were."""
    if not os.access(POOL, os.W_OK):
        pytest.skip(f"{POOL} is not ours to write: huge pages cannot be reserved here")
    before = int(POOL.read_text())
    POOL.write_text(str(before + 16))
    try:
        if int(POOL.read_text()) < before + 16:
            pytest.skip("the kernel finds no 32 MiB in whole huge pages")
        yield 16
    finally:
        POOL.write_text(str(before))


@pytest.mark.alone
async def test_huge_pages_are_taken_and_given_back(qemu: str, reserved: int) -> None:
    before = free_pages()
    memory = Memory("16MiB", huge_pages="2MiB", prealloc=True, prealloc_threads=2)
    async with qmpkit.running(bare(qemu, memory=memory), paused=True) as vm:
        assert before - free_pages() == 8
        used = (await vm.stats()).memory
        assert used.huge == 16 << 20
    assert free_pages() == before
    too_much = attrs.evolve(memory, size="1TiB")
    with pytest.raises(HostLacks, match=r"more free huge pages of 2MiB are needed\. Cure: echo"):
        async with qmpkit.running(bare(qemu, memory=too_much)):
            pass


async def test_the_policy_of_memory_is_the_kernels(qemu: str) -> None:
    nodes = [
        NumaNode(cpus="0", memory="8MiB", host_nodes="0", policy="bind"),
        NumaNode(cpus="1", memory="8MiB", host_nodes="0", policy="interleave"),
    ]
    memory = Memory("16MiB", prealloc=True)
    async with qmpkit.running(bare(qemu, memory=memory, numa=nodes), paused=True) as vm:
        maps = read(f"/proc/{vm.pid}/numa_maps").splitlines()
        pages = {line.split()[1]: line for line in maps if "anon=2048" in line}
        assert set(pages) == {"bind:0", "interleave:0"}
        found = await vm.execute("query-memdev")
        assert {it["id"]: (it["policy"], it["host-nodes"]) for it in found} == {
            "ram0": ("bind", [0]),
            "ram1": ("interleave", [0]),
        }


async def test_what_a_machine_has_used(qemu: str, tmp_path: Path) -> None:
    await qmpkit.images.create(tmp_path / "a.raw", "1MiB", "raw")
    guests.build_kvm_tiny()
    spec = attrs.evolve(
        qmpkit.load_profile("kvm-tiny"),
        qemu=qemu,
        accel="tcg",
        disks=[
            *qmpkit.load_profile("kvm-tiny").disks,
            Disk(tmp_path / "a.raw", format="raw", id="more", iothread="io"),
        ],
    )
    async with qmpkit.running(spec) as vm:
        await vm.console.expect(guests.KVM_TINY_READY)
        earlier = await vm.stats()
        await vm.console.expect("..")
        for words in ("aio_read 0 64k", "aio_write 0 4k", "aio_flush"):
            line = f'qemu-io -d more/virtio-backend "{words}"'
            await vm.execute("human-monitor-command", {"command-line": line})
        later = await vm.stats(dirty_rate=1)
    assert set(later.vcpus) == {0}
    assert set(later.iothreads) == {"io"}
    assert later.vcpus[0].total > 0
    assert later.cpu.total >= later.vcpus[0].total
    assert later.memory.rss > 10 << 20
    assert 0 < (later.memory.pss or 0) <= later.memory.rss + later.memory.huge
    assert "more" in later.disks
    assert later.dirty_rate is not None
    rates = later.since(earlier)
    assert 1 <= rates.seconds < 20
    assert 0 < rates.vcpus[0] < 1.2
    assert (later.disks["more"].read, later.disks["more"].writes) == (65536, 1)
    assert rates.disks["more"].written == pytest.approx(4096 / rates.seconds)


@pytest.mark.qemus(*NEWEST)
async def test_changes_at_the_same_time_do_not_take_each_other_back(qemu: str) -> None:
    async with qmpkit.running(bare(qemu), paused=True) as vm, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: vm.tune.limit(nice=19))
        nursery.start_soon(lambda: vm.tune.limit(policy="batch"))
        nursery.start_soon(vm.tune.pin, LAST)
    assert vm.spec.resources == Resources(nice=19, policy="batch")
    assert vm.spec.cpu.pin == LAST


@pytest.mark.qemus(*NEWEST)
async def test_limits_that_its_supervisor_died_in_are_as_its_spec_says(
    qemu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(tmp_path / "lab/qmpkit-bare", tmp_path)
    group.path.mkdir(parents=True)
    group.write({"cpu.max": "50000 100000"})
    monkeypatch.setattr("qmpkit.operations.tune.live.group_of", lambda pid: group)
    async with qmpkit.running(bare(qemu), paused=True) as vm:
        tuned = attrs.evolve(vm.spec, resources=Resources(cpu_max=0.5))
        await take_place(vm.machine, before=tuned)
    assert group.read("cpu.max") == "max 100000"
