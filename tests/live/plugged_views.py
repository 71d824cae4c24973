"""A machine with memory and processors that come and go, as its host, QEMU and its guest see it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import trio

import qmpkit
from qmpkit import VM, Cpu, Dimm, MachineSpec, Rng, VirtioMem
from qmpkit.spec.names import mac_of
from tests.live.plugged import agreed

__all__ = ["BLOCK", "Views", "grown", "restarted", "roomy", "soon"]

BLOCK = 128 << 20
"""Bytes of one block of memory, as Linux takes it in use and lets go of it."""


def roomy(qemu: str) -> MachineSpec:
    """With room for all kinds; one for all tests, whose saved guest is copied."""
    tiny = qmpkit.load_profile("tiny")
    memory = attrs.evolve(tiny.memory, slots=2, maxmem="1GiB")
    cpu = Cpu(1, 4, sockets=1)  # of another socket Linux measures the delay loop first: 15 s
    return attrs.evolve(tiny, qemu=qemu, accel="tcg", memory=memory, cpu=cpu, balloon=True)


@asynccontextmanager
async def restarted(spec: MachineSpec, *, boot: bool) -> AsyncIterator[VM]:
    """Started again, without the RAM of the copy that it was; its guest boots, or is paused."""
    memory = attrs.evolve(spec.memory, mem_path=None)
    spec = attrs.evolve(spec, memory=memory)
    async with qmpkit.running(spec, paused=not boot) as vm:
        if boot:
            await vm.agent.wait_ready()
            settled = "until [ -e /run/settled ]; do usleep 20000; done"
            await vm.agent.run(["sh", "-c", settled], check=True)
        yield vm


def grown(spec: MachineSpec) -> tuple[VirtioMem, ...]:
    """Its virtio-mem devices."""
    return tuple(it for it in spec.devices if isinstance(it, VirtioMem))


# Waits until all that the guest has is what is said, and its KiB of memory from the first number
# to the second; by the shell itself, as each program that it starts takes long under TCG.
_LOOK = """
low=$1 high=$2
shift 2
look() {
  have=
  for it in /sys/block/vd*; do
    [ -e "$it" ] || continue
    read -r found <$it/serial; have="$have disk:$found"
  done
  for it in /sys/block/sd*; do [ -e "$it" ] && have="$have scsi"; done
  for it in /sys/class/net/eth*; do
    [ -e "$it" ] || continue
    carrier=; read -r carrier <$it/carrier
    read -r found <$it/address; have="$have nic:$found/$carrier"
  done
  read -r found </sys/class/misc/hw_random/rng_available
  for it in $found; do have="$have rng"; done
  read -r found </sys/devices/system/cpu/present; have="$have cpus:$found"
  read -r found </sys/devices/system/cpu/online; have="$have online:$found"
  read -r name found unit </proc/meminfo
  [ $found -lt $low ] || [ $found -gt $high ] && have="$have kib:$found"
}
tries=0
while :; do
  look 2>/dev/null
  missing=
  for it in "$@"; do case "$have " in *" $it "*) ;; *) missing="$missing $it" ;; esac; done
  count=$#
  [ -z "$missing" ] && ( set -- $have; [ $# = $count ] ) && exit 0
  tries=$((tries+1)); [ $tries = 500 ] && { echo "has$have"; exit 1; }
  usleep 20000
done
"""


async def soon(check: Callable[[], Awaitable[object]], seconds: float = 120) -> None:
    """Wait until *check* passes, as the guest may only just let go; its last word goes through."""
    last = trio.current_time() + seconds
    while True:
        try:
            await check()
        except AssertionError:
            if trio.current_time() > last:
                raise
        else:
            return
        await trio.sleep(0.05)


@attrs.define
class Views:
    """What no spec says: the KiB that the kernel keeps for itself (another boot takes some
    more or less: `slack`), the bytes in the balloon, and how many processors are up."""

    vm: VM
    folder: Path
    kept: int = 0
    slack: int = 0
    inflated: int = 0
    online: int = 1

    async def begin(self) -> None:
        """Ask how much of its memory the guest's kernel counts at all."""
        told = await self.vm.agent.run(["grep", "MemTotal", "/proc/meminfo"], check=True)
        self.kept = self._bytes() // 1024 - int(told.text.split()[1])

    async def agree(self, *, guest: bool = True) -> None:
        """Host, QEMU, guest and spec agree, or will in a moment."""
        await agreed(self.vm)
        await self._qemu_has_the_memory(guest=guest)
        await self._processors_are_threads()
        self._images_are_open()
        if guest:
            done = await self.vm.agent.run(["sh", "-c", _LOOK, "look", *self._said()])
            assert done.ok, (done.text, self._said())

    async def _qemu_has_the_memory(self, *, guest: bool) -> None:
        spec, execute = self.vm.spec, self.vm.execute
        found = {it["data"]["id"]: it["data"] for it in await execute("query-memory-devices")}
        wanted: dict[str, int] = {it.id: it.size for it in spec.memory.dimms}
        wanted |= {it.id: it.requested * guest for it in grown(spec)}
        assert wanted == {name: it["size"] for name, it in found.items()}
        laid: list[Dimm | VirtioMem] = [*spec.memory.dimms, *grown(spec)]
        for it in laid:
            there = found[it.id].get("addr", found[it.id].get("memaddr"))
            assert it.address in (None, there), "that of a start is not written down yet"
        asked = {name: it["requested-size"] for name, it in found.items() if "memaddr" in it}
        assert asked == {it.id: it.requested for it in grown(spec)}
        summary = await execute("query-memory-size-summary")
        assert summary == {"base-memory": spec.memory.size, "plugged-memory": sum(wanted.values())}
        left = (await execute("query-balloon"))["actual"]
        assert left == spec.memory.total - self.inflated

    async def _processors_are_threads(self) -> None:
        cpu = self.vm.spec.cpu
        there = {it.number: it for it in await self.vm.cpus.list() if it.is_there}
        assert sorted(there) == [*range(cpu.cpus), *cpu.added]
        fast = {it["cpu-index"]: it["thread-id"] for it in await self.vm.execute("query-cpus-fast")}
        assert fast == {number: it.thread for number, it in there.items()}
        tasks = {int(name) for name in os.listdir(f"/proc/{self.vm.pid}/task")}  # noqa: PTH208
        assert set(fast.values()) <= tasks

    def _images_are_open(self) -> None:
        links = set()
        for it in Path(f"/proc/{self.vm.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                links.add(it.readlink())
        images = {str(it) for it in links if it.is_relative_to(self.folder)}
        assert images == {disk.file for disk in self.vm.spec.disks}

    def _said(self) -> list[str]:
        spec = self.vm.spec
        said = [f"disk:{it.serial}" for it in spec.disks if it.interface == "virtio-blk"]
        said += ["scsi" for it in spec.disks if it.interface == "virtio-scsi"]
        said += [f"nic:{it.mac or mac_of(spec.name, it.id)}/{int(it.link)}" for it in spec.nics]
        said += ["rng" for it in (*[Rng()] * spec.rng, *spec.devices) if isinstance(it, Rng)]
        said += [f"cpus:{_row(spec.cpu.present)}", f"online:{_row(self.online)}"]
        usable = self._bytes() // 1024 - self.kept
        return [str(usable - self.slack), str(usable + self.slack), *said]

    def _bytes(self) -> int:
        spec = self.vm.spec
        return spec.memory.total + sum(it.requested for it in grown(spec)) - self.inflated


def _row(count: int) -> str:
    return "0" if count == 1 else f"0-{count - 1}"
