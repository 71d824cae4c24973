"""Kernel, initrd and firmware of a machine that is saved with copies."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from qmpkit.errors import ImageFailed
from qmpkit.host.firmware import FirmwareFiles
from qmpkit.operations.saved import boot_files
from qmpkit.operations.saved.boot_files import copy_boot_files, needed, with_boot_files
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.machine import Kernel, MachineSpec


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MachineSpec:
    """A machine on files of its user, of which the UEFI's code is the host's."""
    for name in ("code", "vars", "vmlinuz"):
        (tmp_path / name).write_text(name)
    (tmp_path / "copies").mkdir()
    code = str(tmp_path / "code")
    installed = (FirmwareFiles(code=code, template="/usr/share/vars"),)
    monkeypatch.setattr(boot_files, "installed_firmware", lambda: installed)
    image = str(tmp_path / "vmlinuz")
    uefi = Uefi(code=code, template=str(tmp_path / "vars"))
    return MachineSpec(kernel=Kernel(image, image, "quiet"), firmware=uefi)


async def test_all_but_what_the_host_has_is_copied_once(spec: MachineSpec, tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    names = await copy_boot_files(spec, folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "empty-variables": "vars",
        "kernel": "vmlinuz",
    }
    assert with_boot_files(spec, names) == MachineSpec(
        kernel=Kernel("kernel", "kernel", "quiet"),
        firmware=Uefi(code=str(tmp_path / "code"), template="empty-variables"),
    )
    assert set(needed(spec)) == {tmp_path / "code", tmp_path / "vmlinuz"}


async def test_of_a_machine_without_them_there_are_none(tmp_path: Path) -> None:
    assert await copy_boot_files(MachineSpec(), tmp_path) == {}
    assert with_boot_files(MachineSpec(), {"x": "y"}) == MachineSpec()


async def test_one_that_is_gone_is_told(spec: MachineSpec, tmp_path: Path) -> None:
    gone = attrs.evolve(spec, firmware=str(tmp_path / "gone"))
    with pytest.raises(ImageFailed, match=r"save a copy of '.*/gone': No such file"):
        await copy_boot_files(gone, tmp_path / "copies")
