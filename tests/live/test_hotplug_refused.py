"""Each refusal of a plug or an unplug: typed, soon, and with nothing changed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

import qmpkit
from qmpkit import (
    VM,
    AgentSilent,
    Cpu,
    Disk,
    GuestRefused,
    MachineSpec,
    Memory,
    QmpkitError,
    Rng,
    SpecInvalid,
    UnplugPending,
    UserNic,
    VirtioMem,
)
from qmpkit.spec.peripherals import Device
from qmpkit.testing.leaks import leaks
from tests.live.plugged import agreed, places

pytestmark = pytest.mark.live

SOON = 10.0  # seconds for all that is refused: less than any guest is given to answer

Ask = Callable[[], Awaitable[object]]


def roomy(qemu: str, folder: Path) -> MachineSpec:
    """One of each that can go, and a medium on a bus without hotplug; no guest."""
    memory = Memory("64MiB", slots=2, maxmem="1GiB")
    bare = MachineSpec(name="bare", qemu=qemu, accel="tcg", memory=memory, balloon=True)
    disk = Disk(folder / "a.raw", format="raw", make="1MiB", id="disk0")
    medium = Disk(folder / "cd.iso", format="raw", readonly=True, interface="cdrom", id="cd0")
    (folder / "cd.iso").write_bytes(bytes(2048))
    devices: list[Device] = [Rng(id="rng1"), VirtioMem(size="256MiB")]
    cpu = Cpu(1, 4)
    return attrs.evolve(
        bare, disks=[disk, medium], nics=[UserNic()], devices=devices, cpu=cpu, root_ports=1
    )


@asynccontextmanager
async def unchanged(vm: VM) -> AsyncIterator[None]:
    """What is done within is refused soon, and changes nothing."""
    spec, before, begun = vm.spec, await places(vm), time.monotonic()
    yield
    assert time.monotonic() - begun < SOON
    assert vm.spec == spec and await places(vm) == before
    await agreed(vm)


async def refused(vm: VM, error: type[QmpkitError], words: str, ask: Ask) -> None:
    async with unchanged(vm):
        with pytest.raises(error, match=words):
            await ask()


async def test_a_guest_that_stands_still(qemu: str, tmp_path: Path) -> None:
    async with leaks(), qmpkit.running(roomy(qemu, tmp_path), paused=True) as vm:
        dimm = await vm.memory.add("128MiB")
        (cpu,) = await vm.cpus.add()
        asked: list[tuple[type[QmpkitError], Ask]] = [
            (UnplugPending, lambda: vm.disks.remove("disk0")),
            (UnplugPending, lambda: vm.nics.remove("nic0")),
            (UnplugPending, lambda: vm.nics.change(UserNic(id="nic0", net="10.7.0.0/24"))),
            (UnplugPending, lambda: vm.devices.remove("rng1")),
            (UnplugPending, lambda: vm.memory.remove(dimm.id)),
            (UnplugPending, lambda: vm.cpus.remove(cpu.id, unsafe=True)),
            (GuestRefused, lambda: vm.memory.resize("128MiB")),
            (GuestRefused, lambda: vm.memory.balloon("32MiB")),
        ]
        for error, ask in asked:
            await refused(vm, error, "stands still", ask)


async def test_a_guest_that_has_not_booted(qemu: str, tmp_path: Path) -> None:
    spec = attrs.evolve(roomy(qemu, tmp_path), agent=True)
    async with leaks(), qmpkit.running(spec) as vm:
        dimm = await vm.memory.add("128MiB")
        asked: list[tuple[type[QmpkitError], str, Ask]] = [
            (UnplugPending, "not answer", lambda: vm.nics.remove("nic0", grace=0.2)),
            (UnplugPending, "not answer", lambda: vm.devices.remove("rng1", grace=0.2)),
            (UnplugPending, "not answer", lambda: vm.memory.remove(dimm.id, grace=0.2)),
            (GuestRefused, "used 0B", lambda: vm.memory.resize("128MiB", grace=0.2)),
            (GuestRefused, "come to 192MiB", lambda: vm.memory.balloon("32MiB", grace=0.2)),
            (AgentSilent, "agent", lambda: vm.disks.remove("disk0", unmounted=True)),
            (AgentSilent, "agent", lambda: vm.cpus.add(online=True)),
        ]
        for error, words, ask in asked:
            await refused(vm, error, words, ask)
        found = await vm.execute("query-memory-devices")
        assert [it["data"].get("requested-size", 0) for it in found] == [0, 0]


async def test_no_agent_no_hotplug_there_and_no_such_device(qemu: str, tmp_path: Path) -> None:
    async with leaks(), qmpkit.running(roomy(qemu, tmp_path), paused=True) as vm:
        another = Disk(tmp_path / "cd.iso", format="raw", readonly=True, interface="cdrom")
        usual = Disk(tmp_path / "b.raw", format="raw", make="1MiB", bus="pcie.0")
        asked: list[tuple[str, Ask]] = [
            ("no guest agent", lambda: vm.disks.remove("disk0", unmounted=True)),
            ("no guest agent", lambda: vm.cpus.add(online=True)),
            ("'ide.1', which takes and gives no device", lambda: vm.disks.add(another)),
            ("'ide.0', which takes and gives no device", lambda: vm.disks.remove("cd0")),
            ("there is no root port 'pcie.0'", lambda: vm.disks.add(usual)),
            ("no NIC 'nic7'", lambda: vm.nics.remove("nic7")),
            ("no device 'rng0' that can be removed", lambda: vm.devices.remove("rng0")),
            ("no module 'dimm0'", lambda: vm.memory.remove("dimm0")),
        ]
        for words, ask in asked:
            await refused(vm, SpecInvalid, words, ask)
        assert not (tmp_path / "b.raw").exists()


@pytest.mark.parametrize("field", [{"interface": "ide"}, {"cache": "warm"}])
async def test_a_value_that_cannot_be(
    qemu: str, tmp_path: Path, field: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a relative path is made absolute before all is checked
    disk = attrs.evolve(Disk("b.raw", format="raw", make="1MiB"), **field)  # type: ignore[arg-type]
    async with leaks(), qmpkit.running(roomy(qemu, tmp_path), paused=True) as vm, unchanged(vm):
        with pytest.raises(SpecInvalid, match=r"machine 'bare': disks\[0\]\.\w+: must be one of"):
            await vm.disks.add(disk)
