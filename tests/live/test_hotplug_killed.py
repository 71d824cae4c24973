"""Supervisor, QEMU or both are killed while memory or processors come and go: all agree after."""

from __future__ import annotations

import itertools
import signal
import sys
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import VM, Cpu, Kept, MachineSpec, Memory, Supervisor, VirtioMem
from qmpkit.machine.ledger import Change
from qmpkit.operations.hotplug.growing import request, requested
from qmpkit.operations.hotplug.recovery import changes_memory, recover_memory
from qmpkit.testing import guests
from qmpkit.testing.leaks import leaks
from tests.live.dying import STEPS
from tests.live.kept import end_all, lab
from tests.live.plugged_views import BLOCK, Views, grown, roomy, soon
from tests.sizes import NEWEST, RESOURCE_KILLED, RESOURCE_KILLS_EVERY

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST), pytest.mark.usefixtures("places")]

VICTIMS = ("supervisor", "qemu", "supervisor", "supervisor", "both")

PROGRAM = (
    STEPS
    + """
step("qmpkit.machine.machine:Machine", "execute")
step("qmpkit.supervisor.ledger:KeptLedger", "intend")
step("qmpkit.supervisor.ledger:KeptLedger", "settle")

async def main():
    global armed, qemu
    async with qmpkit.Supervisor("lab", keep=True) as lab:
        (kept,) = lab.kept.values()
        qemu, vm, armed = kept.pid, kept.vm, True
        try:
            if words == ["add"]:
                await vm.memory.add("128MiB")
            elif words == ["remove"]:
                await vm.memory.remove(vm.memory.dimms[-1].id)
            elif words == ["processor"]:
                await vm.cpus.add()
            else:
                await vm.memory.resize("128MiB" if words == ["grow"] else 0)
            if not died:
                print("done", flush=True)
        except qmpkit.QmpkitError:
            if victims != "qemu":
                raise

trio.run(main)
"""
)


async def up(supervisor: Supervisor, spec: MachineSpec, *, paused: bool = False) -> Kept:
    """The machine, found or started again, its guest booted."""
    kept = await supervisor.ensure(spec, restart="never", paused=paused)
    await kept.until(lambda: kept.vm is not None and kept.record.change is None)
    assert kept.vm is not None
    if not paused:
        await kept.vm.agent.wait_ready()
    return kept


async def ready(vm: VM, kind: str) -> None:
    """Have it such that there is something to be done."""
    if kind == "add":
        for dimm in vm.memory.dimms:
            await vm.memory.remove(dimm.id)
    elif kind == "remove" and not vm.memory.dimms:
        await vm.memory.add(BLOCK)
    elif kind in ("grow", "shrink"):
        await vm.memory.resize(0 if kind == "grow" else BLOCK)


async def agreed_after(kept: Kept, folder: Path, own: int | None) -> None:
    """QEMU has what the specs of machine and record say; the guest may have to follow yet.

    *own*: the KiB that the guest's kernel keeps for itself, None without one.
    """
    assert kept.vm is not None
    assert (kept.vm.spec.memory, kept.vm.spec.cpu) == (kept.spec.memory, kept.spec.cpu)
    assert kept.vm.spec.devices == kept.spec.devices
    views = Views(kept.vm, folder / "images", kept=own or 0, slack=8192)
    await soon(partial(views.agree, guest=own is not None))


async def dies(kind: str, last: int, victims: str) -> bool:
    """Whether the change was not through before its step of that number."""
    argv = [sys.executable, "-c", PROGRAM, kind, str(last), victims]
    done = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)
    killed = 0 if victims == "qemu" else -signal.SIGKILL
    assert done.stdout == b"done\n" or done.returncode == killed, done.stderr
    return done.stdout != b"done\n"


@pytest.mark.bound(60 + 2000 // RESOURCE_KILLS_EVERY)
async def test_killed_while_memory_changes(qemu: str, tmp_path: Path) -> None:
    guests.build_tiny()
    room = VirtioMem(size=2 * BLOCK)
    spec = attrs.evolve(roomy(qemu), devices=[room], rng=False)
    numbers = itertools.cycle(VICTIMS)
    async with leaks():
        async with lab() as supervisor:
            kept = await up(supervisor, spec)
            assert kept.vm is not None
            views = Views(kept.vm, tmp_path)
            await views.begin()
        for kind in RESOURCE_KILLED:
            for last in itertools.count(RESOURCE_KILLS_EVERY, RESOURCE_KILLS_EVERY):
                async with lab() as supervisor:
                    kept = await up(supervisor, spec)
                    assert kept.vm is not None
                    await ready(kept.vm, kind)
                if not await dies(kind, last, next(numbers)):
                    break
                async with lab() as supervisor:
                    await agreed_after(await up(supervisor, spec), tmp_path, views.kept)
        await end_all()


@pytest.mark.bound(60 + 300 // RESOURCE_KILLS_EVERY)
async def test_killed_while_a_processor_comes(qemu: str, tmp_path: Path) -> None:
    bare = MachineSpec(name="bare", qemu=qemu, accel="tcg", memory="16MiB", balloon=True)
    spec = attrs.evolve(bare, cpu=Cpu(1, 64))
    numbers = itertools.cycle(VICTIMS)
    async with leaks():
        async with lab() as supervisor:
            await up(supervisor, spec, paused=True)
        for last in itertools.count(RESOURCE_KILLS_EVERY, RESOURCE_KILLS_EVERY):
            if not await dies("processor", last, next(numbers)):
                break
            async with lab() as supervisor:
                await agreed_after(await up(supervisor, spec, paused=True), tmp_path, None)
        await end_all()


async def test_a_resize_is_what_qemu_was_asked_for(qemu: str) -> None:
    memory = Memory("64MiB", slots=1, maxmem="1GiB")
    spec = MachineSpec(name="bare", qemu=qemu, accel="tcg", memory=memory)
    spec = attrs.evolve(spec, devices=[VirtioMem(size=2 * BLOCK)], root_ports=1)
    async with qmpkit.running(spec, paused=True) as vm:
        begun = vm.spec
        (device,) = grown(begun)
        bigger = attrs.evolve(begun, devices=[attrs.evolve(device, requested=BLOCK)])
        change = Change(what="resize it", spec=bigger, begun=begun, sure=True)
        assert changes_memory(change)
        for asked, known in ((BLOCK, bigger), (0, begun), (BLOCK // 2, begun)):
            await request(vm.machine, device.id, asked)
            assert await recover_memory(vm.machine, change) is vm.spec is known
            assert await requested(vm.machine, device.id) == grown(known)[0].requested
        laid = attrs.evolve(begun, devices=[attrs.evolve(device, address=4 << 30)])
        noted = Change(what="write down where it lies", spec=laid, begun=begun, sure=True)
        assert changes_memory(noted)
        assert await recover_memory(vm.machine, noted) is laid
