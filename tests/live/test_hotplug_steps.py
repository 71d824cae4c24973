"""All that can be plugged comes and goes in made-up order while a guest runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qmpkit import (
    VM,
    Disk,
    HostLacks,
    NoPortLeft,
    QmpkitError,
    Rng,
    ScsiController,
    SpecInvalid,
    UserNic,
    VirtioMem,
)
from tests.live.plugged import places
from tests.live.plugged_views import BLOCK, Views, grown, restarted, roomy
from tests.sizes import HOTPLUG_STEPS, LONG, QEMU_VERSIONS

pytestmark = [pytest.mark.live, pytest.mark.qemus(*QEMU_VERSIONS)]

MIB = 1 << 20


@contextmanager
def refused(when: bool, error: type[QmpkitError] = SpecInvalid) -> Iterator[None]:
    """What is done within is refused just *when* that is so."""
    if when:
        with pytest.raises(error):
            yield
    else:
        yield


class Life:
    """Each public method is a step; its number chooses among what is there."""

    def __init__(self, vm: VM, folder: Path, *, sheds: bool) -> None:
        self.vm = vm
        self.folder = folder
        self.views = Views(vm, folder)
        self.sheds = sheds
        self.numbers = itertools.count(1)

    async def add_disk(self, _: int) -> None:
        name = f"d{next(self.numbers)}"
        disk = Disk(self.folder / f"{name}.qcow2", format="qcow2", make="8MiB", serial=name)
        with refused(self._full, NoPortLeft):
            await self.vm.disks.add(disk)

    async def add_scsi_disk(self, _: int) -> None:
        file = self.folder / f"s{next(self.numbers)}.raw"
        controllers = [it for it in self.vm.spec.devices if isinstance(it, ScsiController)]
        with refused(self._full and not controllers, NoPortLeft):
            await self.vm.disks.add(Disk(file, format="raw", make="8MiB", interface="virtio-scsi"))

    async def remove_disk(self, number: int) -> None:
        ids = [it.id for it in self.vm.spec.disks]
        with refused(not ids):
            await self.vm.disks.remove(_one(ids, number))

    async def add_nic(self, number: int) -> None:
        nic = UserNic(net=f"10.0.{next(self.numbers)}.0/24", link=bool(number % 3))
        with refused(self._full, NoPortLeft):
            await self.vm.nics.add(nic)

    async def remove_nic(self, number: int) -> None:
        ids = [it.id for it in self.vm.spec.nics]
        with refused(not ids):
            await self.vm.nics.remove(_one(ids, number))

    async def toggle_cable(self, number: int) -> None:
        up = {it.id: it.link for it in self.vm.spec.nics}
        nic = _one([*up], number)
        with refused(not up):
            await self.vm.nics.set_link(nic, up=not up.get(nic, False))

    async def add_rng(self, _: int) -> None:
        with refused(self._full, NoPortLeft):
            await self.vm.devices.add(Rng())

    async def remove_device(self, number: int) -> None:
        """A virtio-mem only while it is empty, a controller while nothing sits on it."""
        by_id = {it.id: it for it in self.vm.spec.devices}
        chosen = by_id.get(_one([*by_id], number))
        used = any(it.interface == "virtio-scsi" for it in self.vm.spec.disks)
        full = isinstance(chosen, VirtioMem) and chosen.requested > 0
        stays = isinstance(chosen, VirtioMem) and not full and not self.sheds
        held = chosen is None or full or (isinstance(chosen, ScsiController) and used)
        with refused(held or stays, HostLacks if stays else SpecInvalid):
            await self.vm.devices.remove(
                chosen.id if chosen else "none", grace=0.3 if stays else 15
            )

    async def add_module(self, number: int) -> None:
        size = BLOCK * (1 + number % 2)
        memory = self.vm.spec.memory
        with refused(len(memory.dimms) == memory.slots or size > self._room):
            await self.vm.memory.add(size)

    async def remove_module(self, number: int) -> None:
        ids = [it.id for it in self.vm.memory.dimms]
        with refused(not ids):
            await self.vm.memory.remove(_one(ids, number))

    async def add_growing(self, _: int) -> None:
        full, size = self._full, 2 * BLOCK
        with refused(full or size > self._room, SpecInvalid):
            await self.vm.devices.add(VirtioMem(size=size))

    async def resize(self, number: int) -> None:
        ids = [it.id for it in grown(self.vm.spec)]
        with refused(not ids):
            await self.vm.memory.resize(number * 32 * MIB, device=_one(ids, number))

    async def balloon(self, number: int) -> None:
        inflated = number % 4 * 2 * MIB
        await self.vm.memory.balloon(self.vm.spec.memory.total - inflated)
        self.views.inflated = inflated

    async def add_processor(self, number: int) -> None:
        cpu, online = self.vm.spec.cpu, bool(number % 2)
        with refused(cpu.present == cpu.maxcpus):
            await self.vm.cpus.add(online=online)
            if online:
                self.views.online = self.vm.spec.cpu.present

    async def remove_processor(self, number: int) -> None:
        """Not under TCG, of which QEMU would die."""
        added = [f"cpu{it}" for it in self.vm.spec.cpu.added]
        with refused(True, HostLacks if added else SpecInvalid):
            await self.vm.cpus.remove(_one(added, number))

    @property
    def _full(self) -> bool:
        return self.vm.devices.ports().left == 0

    @property
    def _room(self) -> int:
        spec = self.vm.spec
        assert spec.memory.maxmem
        return spec.memory.maxmem - spec.memory.total - sum(it.size for it in grown(spec))


def _one(ids: list[str], number: int) -> str:
    return ids[number % len(ids)] if ids else "none"


@attrs.frozen
class Step:
    """A method of `Life`, and the number that it is called with."""

    verb: str
    number: int

    async def of(self, life: Life) -> None:
        await getattr(life, self.verb)(self.number)


VERBS = [name for name in vars(Life) if not name.startswith("_")]
COMES = ("add_disk", "add_nic", "add_module", "add_growing", "add_processor", "balloon", "resize")
STEP = st.builds(Step, st.sampled_from([*VERBS, *COMES]), st.integers(0, 8))


def _varied(steps: list[Step]) -> bool:
    """Hypothesis begins with the simplest list of all, which is one step again and again."""
    return len({step.verb for step in steps}) > 5


def _lists(count: int) -> st.SearchStrategy[list[Step]]:
    """All comes once at least, whatever else happens."""
    more = count - len(COMES)
    lists = st.lists(STEP, min_size=more, max_size=more).filter(_varied)
    return lists.flatmap(
        lambda steps: st.permutations(
            [*(Step(it, number) for number, it in enumerate(COMES, 1)), *steps]
        )
    )


@settings(
    max_examples=1,  # one life is long enough, and none is made shorter: each takes its time
    phases=[Phase.generate],
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(steps=_lists(HOTPLUG_STEPS))
@pytest.mark.bound(60 + 5 * HOTPLUG_STEPS)
async def test_all_agree_after_each_step(qemu: str, tmp_path: Path, steps: list[Step]) -> None:
    async with restarted(roomy(qemu), boot=True) as vm:
        life = Life(vm, tmp_path, sheds="10.0" in qemu)
        await life.views.begin()
        for step in steps:
            await step.of(life)
            await life.views.agree()
        spec, before = vm.spec, await places(vm)
    boots = LONG or "10.0" in qemu  # it takes 8 s
    async with restarted(spec, boot=boots) as vm:
        views = Views(vm, tmp_path, life.views.kept, slack=8192, online=spec.cpu.present)
        await views.agree(guest=boots)
        assert await places(vm) == before
