"""tiny on the other architectures, on each QEMU: what its x86 twin does, it does too."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio

import qmpkit
from qmpkit import Disk, ExitCause, KvmUnavailable, MachineSpec
from qmpkit.host.kvm import host_arch
from qmpkit.host.resolve import resolve
from qmpkit.spec.addresses import RootPort
from qmpkit.spec.layout import layout_of
from qmpkit.spec.network import UserNic
from qmpkit.testing import guests
from tests.conftest import Board
from tests.sizes import IGNORED_BUTTONS, WHOLE_LIVES

pytestmark = pytest.mark.live

BOOTED = 50.0  # seconds to the agent's answer; 3 to 6 on an idle host


@pytest.fixture
def spec(board: Board) -> MachineSpec:
    guests.build_tiny(board.arch)
    profile = qmpkit.load_profile(f"tiny-{board.arch}")
    return attrs.evolve(profile, qemu=board.qemu, accel="tcg")


def disk(folder: Path, name: str, size: int) -> Path:
    file = folder / name
    file.write_bytes(bytes(size))
    return file


@pytest.mark.bound(120)
@pytest.mark.boards(*WHOLE_LIVES)
async def test_it_boots_takes_a_disk_reboots_and_powers_down(
    spec: MachineSpec, tmp_path: Path
) -> None:
    """One boot for all: under TCG they are dear."""
    first = disk(tmp_path, "first.img", 3 << 20)
    spec = attrs.evolve(spec, disks=[Disk(first, format="raw")], nics=[UserNic()], balloon=True)
    async with qmpkit.running(spec) as vm:
        await _is_up(vm)
        done = await vm.agent.run(["uname", "-sm"])
        assert done.text == f"Linux {spec.arch}\n"
        size = await vm.agent.run(["cat", "/sys/block/vda/size"])
        assert int(size.text) * 512 == 3 << 20
        await _until(vm, "ip -4 addr show eth0 | grep -q 'inet 10.0.2.15/24'")
        await _plug(vm, disk(tmp_path, "later.img", 1 << 20))
        await _reboot(vm)
        await vm.powerdown()
        assert (await vm.wait()).cause is ExitCause.GUEST_SHUTDOWN


async def _is_up(vm: qmpkit.VM) -> None:
    with trio.fail_after(BOOTED):
        await vm.console.expect(guests.TINY_READY)
        await vm.console.expect(guests.PROMPT)
        await vm.agent.wait_ready()


async def _until(vm: qmpkit.VM, condition: str) -> None:
    """Wait in the guest's shell; the test's bound ends a wait in vain."""
    await vm.console.send_line(f"until {condition}; do usleep 20000; done; echo tr''ue")
    await vm.console.expect("true")
    await vm.console.expect(guests.PROMPT)


# Debian's kernel for riscv64 has no driver for hotplug: this does its work by hand.  Word 54
# is Slot Control of QEMU's root port, whose bit 10 switches the slot's power off.
_SET = "dd of=$port/config bs=2 seek=54 conv=notrunc"
_BY_HAND = {
    "in": rf"printf '\0\1' | {_SET}; echo 1 >$port/rescan",
    "out": rf"for disk in $port/0000:*; do echo 1 >$disk/remove; done; printf '\0\7' | {_SET}",
}


async def _plug(vm: qmpkit.VM, file: Path) -> None:
    """The board's empty ports take a disk, its guest uses it, and gives it back."""
    node = {"driver": "file", "node-name": "later", "filename": str(file)}
    await vm.execute("blockdev-add", node)
    device = {"driver": "virtio-blk-pci", "drive": "later", "id": "l", "bus": "spare-port0"}
    await vm.execute("device_add", device)
    await _handle(vm, "in")
    await _until(vm, "[ -b /dev/vdb ]")
    with vm.subscribe("DEVICE_DELETED") as deleted:
        await _asked_back(vm)
        await _handle(vm, "out")
        await deleted.wait_for(lambda event: event.data.get("device") == "l")
    await vm.execute("blockdev-del", {"node-name": "later"})


async def _asked_back(vm: qmpkit.VM) -> None:
    """Ask for it, once its guest has done with plugging it in: the port's light tells."""
    while True:
        try:
            await vm.execute("device_del", {"id": "l"})
        except qmpkit.CommandRefused as refused:
            if "power indicator blinking" not in refused.desc:
                raise
            await trio.sleep(0.1)
        else:
            return


async def _handle(vm: qmpkit.VM, direction: str) -> None:
    if vm.spec.arch == "riscv64":
        (port,) = [port for port in layout_of(vm.spec).ports if port.name == "spare-port0"]
        assert isinstance(port, RootPort)
        where = f"port=/sys/bus/pci/devices/0000:00:{port.slot:02x}.{port.function}"
        await vm.agent.run(["sh", "-c", f"{where}; {_BY_HAND[direction]}"], check=True)


async def _reboot(vm: qmpkit.VM) -> None:
    with vm.subscribe("RESET") as resets:
        await vm.console.send_line("reboot -f")
        assert (await resets.next()).data["guest"] is True
    await _is_up(vm)


@pytest.mark.bound(120)
@pytest.mark.boards(*IGNORED_BUTTONS)
async def test_a_guest_that_ignores_the_button_is_stopped_all_the_same(spec: MachineSpec) -> None:
    assert spec.kernel is not None
    kernel = attrs.evolve(spec.kernel, append=f"{spec.kernel.append} tiny.ignore_powerdown")
    async with qmpkit.running(attrs.evolve(spec, kernel=kernel)) as vm:
        await _is_up(vm)
        await vm.powerdown()
        await vm.console.expect("power button ignored")
        report = await vm.shutdown(grace=0.2)
        assert report.cause is ExitCause.HOST_QUIT


async def test_kvm_is_refused_and_auto_emulates(spec: MachineSpec) -> None:
    """A foreign guest is emulated without a warning: nothing on this host could do better."""
    if host_arch() == spec.arch:
        pytest.skip(f"needs a host that is not {spec.arch}")
    with pytest.raises(KvmUnavailable, match=f"cannot run a {spec.arch} guest on a"):
        async with qmpkit.running(attrs.evolve(spec, accel="kvm")):
            pass
    found = await resolve(attrs.evolve(spec, accel="auto"))
    assert (found.facts.accel, found.warnings) == ("tcg", ())
