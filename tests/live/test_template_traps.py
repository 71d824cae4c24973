"""What would lose a template, or what a clone has done: refused, and all is as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

import qmpkit
from qmpkit import Disk, State
from qmpkit.errors import SpecInvalid
from tests.live.counting import counted, counting_template
from tests.sizes import OLDEST

pytestmark = [pytest.mark.live, pytest.mark.qemus(*OLDEST)]


@pytest.fixture
async def template(qemu: str, tmp_path: Path) -> qmpkit.Template:
    return await counting_template(qemu, tmp_path)


async def test_a_clone_is_not_saved_without_its_disk(
    template: qmpkit.Template, tmp_path: Path
) -> None:
    unit = tmp_path / "unit"
    async with template.clone(twin=True) as vm:
        with pytest.raises(SpecInvalid, match=r"'disk0' ends with the machine.*copy_disks=True"):
            await vm.save(unit)
        (tmp_path / "above").mkdir()
        await vm.snapshots.take("above", folder=tmp_path / "above")
        with pytest.raises(SpecInvalid, match="'disk0' ends with the machine"):
            await vm.save(unit)  # the layer stays, and what it stands on does not
        assert vm.state is State.RUNNING and not unit.exists()


async def test_a_clone_that_was_saved_with_copies_stands_alone(qemu: str, tmp_path: Path) -> None:
    (tmp_path / "read.raw").write_bytes(bytes(1 << 20))
    read = Disk(tmp_path / "read.raw", format="raw", readonly=True)
    template = await counting_template(qemu, tmp_path, read)
    unit = tmp_path / "unit"
    async with template.clone(twin=True) as vm:
        saved = await vm.save(unit, copy_disks=True)
    assert not saved.needs and not saved.disks
    await template.remove()
    assert await qmpkit.verify_saved(unit) == ()
    unit.rename(tmp_path / "moved")
    async with qmpkit.restored(tmp_path / "moved", layers=tmp_path / "layers") as vm:
        assert await counted(vm) > 0
    with (tmp_path / "moved" / "firmware").open("r+b") as firmware:
        firmware.write(b"x")
    with pytest.raises(SpecInvalid, match=r"files\.firmware: the content of '.*' is another one"):
        async with qmpkit.restored(tmp_path / "moved"):
            pass
