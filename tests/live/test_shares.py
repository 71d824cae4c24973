"""A directory of the host in its guest, served by a virtiofsd of the machine's own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import VM, HostLacks, MachineSpec, Share, SpecInvalid
from qmpkit.host.virtiofsd import find_virtiofsd, virtiofsd_of
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.kept import Places, end_all, kill, lab
from tests.live.plugged import agreed
from tests.sizes import HOTPLUG_CANCELS, NEWEST

pytestmark = pytest.mark.live

_READ = "until mount -t virtiofs $0 /mnt; do usleep 20000; done 2>/dev/null; cat /mnt/file"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Its name is one that an option of virtiofsd's is not to be torn at."""
    folder = tmp_path / "a, b\\c"
    folder.mkdir()
    (folder / "file").write_text("from the host")
    return folder


def shared(qemu: str, *shares: Share) -> MachineSpec:
    tiny = qmpkit.load_profile("tiny")
    memory = attrs.evolve(tiny.memory, share=True)
    return attrs.evolve(tiny, qemu=qemu, accel="tcg", memory=memory, devices=shares)


def served(folder: Path) -> list[int]:
    """The virtiofsds that share it, each of which is two processes in its sandbox."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                words = Path(entry.path, "cmdline").read_bytes()
            except OSError:
                continue
            if b"virtiofsd" in words and os.fsencode(folder.parent) in words:
                found.append(int(entry.name))
    return found


async def none_left(folder: Path) -> None:
    with trio.fail_after(10):
        while served(folder):  # noqa: ASYNC110  # nothing tells of a stranger's end
            await trio.sleep(0.01)


async def mounted(vm: VM, tag: str) -> None:
    """The guest reads and writes."""
    seen = await vm.agent.run(["sh", "-c", _READ, tag], check=True)
    assert seen.text == "from the host"


@pytest.mark.bound(180 + 300 // HOTPLUG_CANCELS)
@pytest.mark.qemus(*NEWEST)
async def test_a_guest_reads_and_writes(qemu: str, folder: Path) -> None:
    spec = shared(qemu)
    async with qmpkit.running(spec) as vm:
        await vm.agent.wait_ready()
        share = await vm.devices.add(Share(tag="work", path=folder))
        assert isinstance(share, Share) and served(folder)
        await agreed(vm)
        await mounted(vm, "work")
        await vm.agent.run(["sh", "-c", "echo back >/mnt/new; umount /mnt"], check=True)
        assert (folder / "new").read_text() == "back\n"
        await vm.devices.remove(share.id)
        await agreed(vm)
        await none_left(folder)
        with pytest.raises(SpecInvalid, match="cannot be shared"):
            await vm.devices.add(Share(tag="work", path=folder / "nope"))

        async def add() -> None:
            await vm.devices.add(Share(tag="work", path=folder))

        async def nothing() -> None:
            for device in vm.spec.devices:
                await vm.devices.remove(device.id)
            await none_left(folder)
            await agreed(vm)

        assert await cancel_at_every_checkpoint(add, every=HOTPLUG_CANCELS, after=nothing)
        await add()
        await mounted(vm, "work")
        (first, *_) = served(folder)
        os.kill(first, signal.SIGKILL)
        (share,) = vm.spec.devices
        while share.id not in vm.devices.lost:  # noqa: ASYNC110  # told in the log
            await trio.sleep(0.01)
        assert "SIGKILL" in vm.devices.lost[share.id]
        await vm.execute("query-status")
        spec = vm.spec
    await none_left(folder)
    async with qmpkit.running(spec, paused=True) as vm:
        assert served(folder)
        await agreed(vm)
        assert not vm.devices.lost
    await none_left(folder)


@pytest.mark.qemus(*NEWEST)
async def test_a_start_that_is_cancelled_leaves_none(qemu: str, folder: Path) -> None:
    spec = attrs.evolve(shared(qemu, Share(tag="work", path=folder)), kernel=None)

    async def start() -> None:
        async with qmpkit.running(spec, paused=True):
            pass

    async def nothing() -> None:
        await none_left(folder)

    await cancel_at_every_checkpoint(start, every=max(1, HOTPLUG_CANCELS // 2), after=nothing)


@pytest.mark.qemus(*NEWEST)
async def test_what_cannot_be_shared_is_told(qemu: str, folder: Path) -> None:
    share = Share(tag="work", path=folder)
    spec = attrs.evolve(shared(qemu, share), kernel=None)
    private = attrs.evolve(spec, memory="64MiB")
    with pytest.raises(SpecInvalid, match=r"not shared .*memory\.share = true"):
        async with qmpkit.running(private):
            pass
    if not (await virtiofsd_of(find_virtiofsd())).readonly:
        silent = attrs.evolve(spec, devices=[attrs.evolve(share, read_only=True)])
        with pytest.raises(HostLacks, match="read-only"):
            async with qmpkit.running(silent):
                pass
    await none_left(folder)


@pytest.mark.qemus(*NEWEST)
async def test_it_outlives_its_supervisor_with_its_machine(
    qemu: str, places: Places, folder: Path
) -> None:
    spec = attrs.evolve(shared(qemu, Share(tag="one", path=folder)), kernel=None)
    async with leaks():
        async with lab() as first:
            kept = await first.ensure(spec)
            assert kept.vm is not None
            await kept.vm.devices.add(Share(tag="two", path=folder))
            before = served(folder)
            assert before
        assert served(folder) == before
        async with lab() as second:
            kept = second.kept["tiny"]
            await kept.wait_running()
            assert kept.vm is not None
            await agreed(kept.vm)
            assert not kept.vm.devices.lost
            with second.subscribe() as happenings:
                kill(before[0])
                async for it in happenings:
                    if it.state == "share-lost":
                        break
            (lost,) = kept.vm.devices.lost
            assert repr(lost) in it.cause
            await second.declare("tiny", "stopped")
            await none_left(folder)
            await second.declare("tiny", "running")
            assert kept.vm is not None and not kept.vm.devices.lost
        await end_all()
        await none_left(folder)
