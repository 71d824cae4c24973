"""A machine with limits, on a made-up tree of control groups: born in its group, gone with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import qmpkit
from qmpkit import HostLacks, MachineSpec, Resources
from qmpkit.host import check_resources
from qmpkit.process import cgroup
from qmpkit.process.cgroup import Base
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.sizes import LIMITED_CANCELS, NEWEST
from tests.unit.process.test_cgroup import directory, groups, own_place

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mount = directory(tmp_path / "cgroup")
    directory(mount / own_place())
    lab = directory(mount / "lab")
    base = Base(mount, lab, ("cpu", "pids"))
    monkeypatch.setattr(cgroup, "base_of", lambda _: base)
    monkeypatch.setattr(check_resources, "base_of", lambda _: base)
    monkeypatch.setattr(cgroup, "_remove", _removed)
    plain = cgroup.Group.write

    def write(group: cgroup.Group, files: dict[str, str]) -> None:
        (group.path / "cgroup.procs").touch()
        plain(group, files)

    monkeypatch.setattr(cgroup.Group, "write", write)
    return lab


def _removed(path: Path) -> bool:
    """What a kernel does whose process has gone."""
    shutil.rmtree(path)
    return True


def spec(qemu: str, resources: Resources) -> MachineSpec:
    return MachineSpec(name="web", qemu=qemu, accel="tcg", memory="16MiB", resources=resources)


async def test_it_is_born_in_its_group(qemu: str, lab: Path) -> None:
    wanted = Resources(cpu_max=1.5, cpu_weight=50, pids_max=64)
    async with leaks(), qmpkit.running(spec(qemu, wanted), paused=True):
        (name,) = groups(lab)
        assert name.startswith("qmpkit-web-")
        found = {file.name: file.read_text() for file in (lab / name).iterdir()}
        assert found == {
            "cgroup.procs": "0\n",
            "cpu.max": "150000 100000",
            "cpu.weight": "50",
            "pids.max": "64",
        }
        assert (lab.parent / own_place() / "cgroup.procs").read_text() == "0\n"
    assert groups(lab) == []


async def test_cancelled_at_its_start_it_leaves_no_group(qemu: str, lab: Path) -> None:
    async def start() -> None:
        async with qmpkit.running(spec(qemu, Resources(cpu_max=1)), paused=True):
            pass

    async with leaks():
        runs = await cancel_at_every_checkpoint(
            start, every=LIMITED_CANCELS, after=lambda: _none(lab)
        )
    assert runs > 1


def _none(lab: Path) -> None:
    assert groups(lab) == []


async def test_a_controller_that_this_host_lacks(qemu: str, lab: Path) -> None:
    with pytest.raises(HostLacks, match="lacks the controller memory") as lacks:
        async with qmpkit.running(spec(qemu, Resources(memory_max="1GiB"))):
            pass
    assert lacks.value.source == "machine 'web'"
    assert groups(lab) == []
