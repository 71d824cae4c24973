"""Saved machines that are not what they were: refused, each with its reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

import qmpkit
from qmpkit import ImageInUse, LaunchFailed, SpecInvalid
from qmpkit.host import saved as host_saved
from qmpkit.operations.saved.folder import held_folder
from qmpkit.testing import guests
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.blocks import write
from tests.live.counting import counting
from tests.sizes import NEWEST, SAVED_CANCELS

pytestmark = pytest.mark.live


@asynccontextmanager
async def one_saved(qemu: str, folder: Path) -> AsyncIterator[Path]:
    """A machine with a firmware and a disk of its own, saved as it had begun."""
    spec = attrs.evolve(counting(qemu, folder, "qcow2"), firmware=str(folder / "firmware"))
    shutil.copy(guests.build_kvm_tiny() / "firmware.bin", folder / "firmware")
    async with qmpkit.running(spec) as vm:
        await write(vm, "disk0", 0, 1)
        await vm.save(folder / "unit")
    yield folder / "unit"


def _manifest(**changes: Any) -> Callable[[Path], None]:
    def spoil(unit: Path) -> None:
        path = unit / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def _spec(**changes: Any) -> Callable[[Path], None]:
    def spoil(unit: Path) -> None:
        path = unit / "manifest.json"
        told = json.loads(path.read_text())
        told["spec"] |= changes
        path.write_text(json.dumps(told))

    return spoil


def _cut(name: str) -> Callable[[Path], None]:
    return lambda unit: os.truncate(unit / name, 1000)


def _flip(name: str, at: int) -> Callable[[Path], None]:
    def spoil(unit: Path) -> None:
        with (unit / name).open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))

    return spoil


def _replace_disk(unit: Path) -> None:
    disk = unit.parent / "0.qcow2"
    shutil.copy2(disk, disk.with_suffix(".new"))
    disk.with_suffix(".new").rename(disk)


_NONE = {"length": 1, "checksum": "xxh3_128:" + "0" * 32, "sampled": "xxh3_128:" + "0" * 32}
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a newer schema": (_manifest(schema=99), "99 is newer than the 1 this qmpkit reads"),
    "no manifest": (lambda unit: (unit / "manifest.json").unlink(), "there is no manifest.json"),
    "no JSON": (lambda unit: (unit / "manifest.json").write_text("{"), "this is not JSON"),
    "another JSON": (
        lambda unit: (unit / "manifest.json").write_text("[]"),
        "no manifest of a saved",
    ),
    "an unknown key": (_manifest(strange=1), "strange: unknown key"),
    "no RAM named": (_manifest(files={}), "there is no 'memory', which is the RAM"),
    "a way out": (_manifest(files={"../x": _NONE}), "is no name of a file of it"),
    "a spec that is none": (_spec(memory="much"), "spec.memory"),
    "a disk unheard of": (_manifest(disks={}), "nothing is said of disk 'disk0'"),
    "another machine type": (_spec(machine="pc-q35-99.0"), "has no machine type 'pc-q35-99.0'"),
    "another processor": (
        _manifest(cpu_flags=["avx9000"]),
        "lacks what the guest has found: avx9000",
    ),
    "the RAM is gone": (lambda unit: (unit / "memory").unlink(), "memory' cannot be read"),
    "the RAM is cut": (_cut("memory"), "has 1000 bytes instead of"),
    "the RAM is another": (_flip("memory", 100), "the content of .*memory' is another one"),
    "the firmware is another": (
        _flip("../firmware", 600),
        "the content of .*firmware' is another one",
    ),
    "a disk was written to": (
        lambda unit: os.utime(unit.parent / "0.qcow2"),
        "was written to since the machine was",
    ),
    "a disk is another": (_replace_disk, "is another file than when it was saved"),
    "a disk is gone": (lambda unit: (unit.parent / "0.qcow2").unlink(), "0.qcow2' cannot be read"),
    "it was used": (_manifest(spent=1.0), "it was restored at 1970.* gone on since"),
}


@pytest.mark.qemus(*NEWEST)
async def test_a_bad_one_is_refused_with_its_reason(qemu: str, tmp_path: Path) -> None:
    async with one_saved(qemu, tmp_path) as unit:
        whole = tmp_path / "whole"
        whole.mkdir()
        for path in (
            unit / "manifest.json",
            unit / "memory",
            tmp_path / "firmware",
            tmp_path / "0.qcow2",
        ):
            os.link(path, whole / path.name)
        for called, (spoil, reason) in BAD.items():
            _put_back(whole, unit)
            spoil(unit)
            with pytest.raises(SpecInvalid, match=reason):
                async with qmpkit.restored(unit):
                    raise AssertionError(called)
        _put_back(whole, unit)
        async with held_folder(unit, alone=True):
            with pytest.raises(ImageInUse, match="another restores it"):
                async with qmpkit.restored(unit):
                    pass
        with pytest.raises(LaunchFailed):  # found out by QEMU itself: and it can be tried again
            _spec(memory="24MiB")(unit)
            async with qmpkit.restored(unit):
                pass
        _put_back(whole, unit)
        async with qmpkit.restored(unit) as vm:
            await vm.console.expect("..")


def _put_back(whole: Path, unit: Path) -> None:
    for path in whole.iterdir():
        place = (unit if path.name in ("manifest.json", "memory") else unit.parent) / path.name
        place.unlink(missing_ok=True)
        if path.name == "0.qcow2":  # the disk has to be that very file
            os.link(path, place)
        else:
            shutil.copy2(path, place)
    (layer,) = json.loads((unit / "manifest.json").read_text())["disks"]["disk0"]
    os.utime(layer["file"], ns=(layer["mtime_ns"], layer["mtime_ns"]))


@pytest.mark.qemus(*NEWEST)
async def test_cancelled_a_restore_can_be_done_again(qemu: str, tmp_path: Path) -> None:
    async with one_saved(qemu, tmp_path) as unit:
        layers = tmp_path / "layers"
        layers.mkdir()
        text = (unit / "manifest.json").read_text()

        async def restore() -> None:
            async with qmpkit.restored(unit, layers=layers, paused=True):
                pass

        async def after() -> None:
            assert sorted(path.name for path in layers.iterdir()) in ([], ["disk0.qcow2"])
            for path in layers.iterdir():
                path.unlink()
            assert (unit / "manifest.json").read_text() == text
            assert sorted(path.name for path in unit.iterdir()) == ["manifest.json", "memory"]

        async with leaks():
            await cancel_at_every_checkpoint(restore, every=SAVED_CANCELS, after=after)


@pytest.mark.qemus(*NEWEST)
@pytest.mark.parametrize(("spoil", "why"), [(_flip("memory", 90), "damaged"), (None, "middle")])
async def test_a_damaged_pack_is_no_start(
    qemu: str, tmp_path: Path, spoil: Callable[[Path], None] | None, why: str
) -> None:
    async with leaks():
        async with qmpkit.running(counting(qemu, tmp_path), paused=True) as vm:
            await vm.save(tmp_path / "unit", ram="packed")
        memory = tmp_path / "unit/memory"
        (spoil or (lambda unit: os.truncate(unit / "memory", memory.stat().st_size // 2)))(
            tmp_path / "unit"
        )
        assert [it.path for it in await qmpkit.verify_saved(tmp_path / "unit")] == ["files.memory"]
        told = json.loads((tmp_path / "unit/manifest.json").read_text())["files"]
        told["memory"]["length"] = memory.stat().st_size
        told["memory"]["sampled"] = host_saved.sampled_sum(memory)  # as if no sample had met it
        _manifest(files=told)(tmp_path / "unit")
        with pytest.raises(SpecInvalid, match="has another checksum"):
            async with qmpkit.restored(tmp_path / "unit", verify=True):
                pass
        with pytest.raises(LaunchFailed, match=f"{why}|load of migration failed|stream"):
            async with qmpkit.restored(tmp_path / "unit"):
                pass
        assert (await qmpkit.saved_machine(tmp_path / "unit")).spent is None


def test_a_sample_sees_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(200_000))
    before = host_saved.sampled_sum(path)
    for at in (0, 199_999):
        content = bytearray(200_000)
        content[at] = 1
        path.write_bytes(content)
        assert host_saved.sampled_sum(path) != before
