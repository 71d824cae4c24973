"""The folder that a saved machine's layers go into."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.errors import ImageFailed, SpecInvalid
from qmpkit.operations.saved.restoring import restorable
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.saved import MANIFEST, MEMORY, FileSum, SavedMachine, saved_to_json


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The folder of a saved machine without disks."""
    nothing = "xxh3_128:99aa06d3014798d86001c324468d497f"
    saved = SavedMachine(
        spec=MachineSpec(name="web", machine="pc-q35-7.2"),
        time=1e9,
        qmpkit="0.1.0",
        qemu="7.2.22",
        accel="tcg",
        files={MEMORY: FileSum(length=0, checksum=nothing, sampled=nothing)},
    )
    folder = tmp_path / "unit"
    folder.mkdir()
    (folder / MEMORY).touch()
    (folder / MANIFEST).write_text(saved_to_json(saved))
    return folder


async def test_it_is_made_when_it_is_not_there(unit: Path, tmp_path: Path) -> None:
    layers = tmp_path / "layers"
    async with restorable(unit, layers=layers, verify=False) as found:
        assert layers.stat().st_mode & 0o777 == 0o700
        await found.used()
    assert layers.is_dir()


@pytest.mark.parametrize("there", [False, True])
async def test_what_fails_leaves_it_as_it_was(unit: Path, tmp_path: Path, there: bool) -> None:
    layers = tmp_path / "layers"
    if there:
        layers.mkdir()
    with pytest.raises(ZeroDivisionError):
        async with restorable(unit, layers=layers, verify=False):
            assert layers.is_dir()
            raise ZeroDivisionError
    assert layers.exists() is there


async def test_one_that_cannot_be_made_is_told(unit: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for layers, why in [
        (tmp_path / "none/layers", r"there is no directory '.*/none' \(create it\)"),
        (tmp_path / "file", r"'.*/file' is no directory \(name another \(`layers`, --keep\)\)"),
    ]:
        with pytest.raises(SpecInvalid, match=why):
            async with restorable(unit, layers=layers, verify=False):
                pass
    with pytest.raises(ImageFailed, match="create"):
        async with restorable(unit, layers=tmp_path / ("n" * 300), verify=False):
            pass
