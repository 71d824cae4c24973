"""Disks that are encrypted: made, snapshotted, moved, backed up, and never anywhere in clear."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import qmpkit
from qmpkit import (
    BaseKey,
    CommandRefused,
    Disk,
    LaunchFailed,
    Luks,
    MachineSpec,
    Overlay,
    SpecInvalid,
    images,
)
from qmpkit.images import Options
from qmpkit.testing.leaks import leaks
from tests.live.backup_folders import restored
from tests.live.blocks import BLOCK, bare, nothing_left, qemu_io, write
from tests.live.kept import Places, end_all, lab
from tests.sizes import ENCRYPTED, LONG, NEWEST

pytestmark = pytest.mark.live

SLOW = pytest.mark.skipif(not LONG, reason="each image takes seconds: scripts/test --long")
SECRET = "correct horse, battery staple\n"
BASE_SECRET = "tr0ub4dor"


def _luks(folder: Path, name: str = "web.key", secret: str = SECRET, **more: Any) -> Luks:
    """Its secret in a file; nobody guesses it, so that images are opened at once."""
    (folder / name).write_text(secret)
    (folder / name).chmod(0o600)
    return Luks(folder / name, iter_time=10, **more)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encrypted image above one that has another secret: each takes seconds to make."""
    folder = tmp_path_factory.mktemp("pair")

    async def make() -> None:
        quick = Options(iter_time=10)
        base, top = folder / "base.qcow2", folder / "top.qcow2"
        await images.create(base, "16MiB", "qcow2", options=quick, secret=BASE_SECRET)
        await images.overlay(top, base, "qcow2", options=quick, secret=SECRET)

    trio.run(make)
    return folder


@pytest.fixture
def on_two(pair: Path, tmp_path: Path) -> Disk:
    """A disk of a copy of those, with both secrets."""
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    _luks(tmp_path, "base.key", BASE_SECRET)
    luks = _luks(tmp_path, bases=[BaseKey(tmp_path / "base.qcow2", tmp_path / "base.key")])
    return Disk(tmp_path / "top.qcow2", format="qcow2", luks=luks)


def _with(qemu: str, disk: Disk) -> MachineSpec:
    return attrs.evolve(bare(qemu, Path()), disks=[disk])


async def _holds(spec: MachineSpec, blocks: dict[int, int]) -> None:
    """The disk's image, without a base and in nobody's hands, has these to who has the secret."""
    (disk,) = spec.disks
    plain = trio.Path(f"{disk.file}.plain")
    await images.convert(
        disk.file, plain, source_format=disk.format, format="raw", source_secret=SECRET
    )
    content = await plain.read_bytes()
    await plain.unlink()
    for block, pattern in blocks.items():
        found = content[block * BLOCK : (block + 1) * BLOCK]
        assert found == bytes([pattern]) * BLOCK, block


def _nowhere_in_clear(folder: Path, *patterns: int) -> None:
    """No file there has a sector that a guest has written as it was, nor the secret."""
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".key":
            content = path.read_bytes()
            assert SECRET.strip().encode() not in content, path
            for pattern in patterns:
                assert bytes([pattern]) * 512 not in content, (path, pattern)


async def test_each_image_of_a_chain_has_its_secret(
    qemu: str, tmp_path: Path, on_two: Disk
) -> None:
    async with leaks():
        async with qmpkit.running(_with(qemu, on_two), paused=True) as vm:
            assert SECRET.strip() not in repr(vm.machine.argv)
            await write(vm, "disk0", 0, 101)
            _, base = await vm.disks.chain("disk0")
            assert base.is_nameless and Path(base.file).name == "base.qcow2"
            await vm.disks.resize("disk0", "32MiB")
            await vm.backups.run(tmp_path / "backups", plain=True)
            await write(vm, "disk0", 1, 102)
            point = await vm.backups.run(tmp_path / "backups", plain=True)
            assert point.kind == "incremental"
            await restored(tmp_path / "backups", "disk0", 2, {0: 101, 1: 102})
            shutil.rmtree(tmp_path / "backups")
            spec = vm.spec
        async with qmpkit.at_rest(spec) as machine:
            await machine.disks.flatten("disk0")
            assert len(await machine.disks.chain("disk0")) == 1
    _nowhere_in_clear(tmp_path, 101, 102)
    await _holds(spec, {0: 101, 1: 102, 2: 0})


async def test_a_new_layer_has_the_secret_of_the_disk(
    qemu: str, tmp_path: Path, on_two: Disk
) -> None:
    async with leaks(), qmpkit.running(_with(qemu, on_two), paused=True) as vm:
        key = tmp_path / "web.key"
        key.rename(tmp_path / "gone")
        with pytest.raises(SpecInvalid, match=r"key_file.*web.key' cannot be read"):
            await vm.snapshots.take("one")
        with pytest.raises(SpecInvalid, match="raw image holds no encryption"):
            await vm.disks.move("disk0", tmp_path / "moved.raw", format="raw")
        with pytest.raises(SpecInvalid, match="an encrypted image takes no memory"):
            await vm.snapshots.save("ram")  # QEMU would abort
        folder = tmp_path / "backups"
        with pytest.raises(SpecInvalid, match=r"disk0: it is encrypted.*plain=True"):
            await vm.backups.run(folder)
        assert not folder.exists()
        await nothing_left(vm)
        assert not vm.snapshots.list()


@pytest.mark.qemus(*NEWEST)
async def test_snapshots_are_encrypted(qemu: str, tmp_path: Path, on_two: Disk) -> None:
    async with leaks():
        async with qmpkit.running(_with(qemu, on_two), paused=True) as vm:
            await write(vm, "disk0", 0, 101)
            await vm.snapshots.take("one")
            await write(vm, "disk0", 1, 102)
            await nothing_left(vm)
            spec = vm.spec
        async with qmpkit.running(spec, paused=True) as vm:
            await vm.snapshots.delete("one")
            await vm.disks.flatten("disk0")
            await nothing_left(vm)
            spec = vm.spec
        _nowhere_in_clear(tmp_path, 101, 102)
    await _holds(spec, {0: 101, 1: 102})


@SLOW
@pytest.mark.bound(300)
@pytest.mark.parametrize("format", ENCRYPTED)
async def test_a_whole_life(qemu: str, tmp_path: Path, format: Any) -> None:
    other: Any = "qcow2" if format == "luks" else "luks"
    disk = Disk(tmp_path / f"0.{format}", format=format, make="16MiB", luks=_luks(tmp_path))
    async with leaks():
        async with qmpkit.running(_with(qemu, disk), paused=True) as vm:
            await write(vm, "disk0", 0, 101)
            await write(vm, "disk0", 6, 0)  # what luks has never written reads as noise
            await vm.snapshots.take("one")
            await write(vm, "disk0", 1, 102)
            await vm.snapshots.take("two")
            await write(vm, "disk0", 2, 103)
            await vm.snapshots.delete("one")  # between two layers
            (tmp_path / "web.key").write_text("another")  # as if the secret had been changed
            with pytest.raises(CommandRefused, match="Invalid password"):
                await vm.snapshots.take("three")
            (tmp_path / "web.key").write_text(SECRET)
            await vm.disks.resize("disk0", "32MiB")
            await vm.disks.flatten("disk0")
            await nothing_left(vm)
            spec = vm.spec
        async with qmpkit.running(spec, paused=True) as vm:
            await write(vm, "disk0", 3, 104)
            await vm.snapshots.delete("two")
            await write(vm, "disk0", 4, 105)
            await vm.disks.move("disk0", tmp_path / "moved", format=other)
            await write(vm, "disk0", 5, 106)
            await nothing_left(vm)
            spec = vm.spec
        async with qmpkit.at_rest(spec) as machine:
            await machine.snapshots.take("three")
            await machine.snapshots.delete("three")
            await machine.disks.move("disk0", tmp_path / "again", format=format)
            spec = machine.spec
    _nowhere_in_clear(tmp_path, 101, 102, 103, 104, 105, 106)
    await _holds(spec, {0: 101, 1: 102, 2: 103, 3: 104, 4: 105, 5: 106, 6: 0})


@SLOW
@pytest.mark.parametrize("format", ENCRYPTED)
async def test_an_overlay_that_a_start_makes(
    qemu: str, tmp_path: Path, on_two: Disk, format: Any
) -> None:
    base = tmp_path / f"plain.{format}"
    luks = attrs.evolve(on_two.luks, bases=[]) if on_two.luks else None
    await images.create(base, "16MiB", format, secret=SECRET, options=Options(iter_time=10))
    make = Overlay(base, format=format)
    disk = Disk(tmp_path / "made.qcow2", format="qcow2", make=make, luks=luks)
    async with leaks(), qmpkit.running(_with(qemu, disk), paused=True) as vm:
        await write(vm, "disk0", 0, 101)
        await vm.disks.flatten("disk0")
        spec = vm.spec
    _nowhere_in_clear(tmp_path, 101)
    await _holds(spec, {0: 101})


async def test_what_cannot_be_is_told_before_anything_starts(
    qemu: str, tmp_path: Path, on_two: Disk
) -> None:
    luks = on_two.luks
    assert luks is not None
    plain = await images.create(tmp_path / "plain.qcow2", "16MiB", "qcow2")
    key = tmp_path / "bad.key"
    key.write_bytes(b"\xff\0")
    (tmp_path / "web.key").chmod(0o644)
    for disk, message in (
        (attrs.evolve(on_two, luks=None), "top.qcow2' is encrypted"),
        (attrs.evolve(on_two, luks=key), "holds a NUL byte"),
        (attrs.evolve(on_two, luks=tmp_path / "no.key"), r"no.key' cannot be read"),
        (Disk(plain, format="qcow2", luks=luks), "is not encrypted.*in clear"),
        (Disk(plain, format="luks", luks=luks), "is qcow2, not luks"),
    ):
        with pytest.raises(SpecInvalid, match=message):
            async with qmpkit.running(_with(qemu, disk), paused=True):
                pass
        if disk.format == "qcow2":
            with pytest.raises(SpecInvalid, match=message):
                async with qmpkit.at_rest(_with(qemu, disk)):
                    pass
    wrong = attrs.evolve(on_two, luks=attrs.evolve(luks, bases=[]))
    with pytest.raises(LaunchFailed, match=r"Invalid password[^$]*Cure: .*key_file"):
        async with qmpkit.running(_with(qemu, wrong), paused=True):
            pass
    with pytest.raises(CommandRefused, match="Invalid password"):
        async with qmpkit.at_rest(_with(qemu, wrong)):
            pass


@SLOW
async def test_what_a_guest_overwrites_while_it_is_pulled(
    qemu: str, tmp_path: Path, on_two: Disk
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="qk-")) / "pull"  # short, as its socket's path
    async with leaks(), qmpkit.running(_with(qemu, on_two), paused=True) as vm:
        await write(vm, "disk0", 0, 101)
        async with vm.backups.pulling(folder) as pull:
            await write(vm, "disk0", 0, 102)
            _nowhere_in_clear(folder, 101)
            done = await qemu_io(pull.disks["disk0"].uri, "raw", f"read -P 101 0 {BLOCK}")
            assert b"verification failed" not in done.stdout and done.returncode == 0
    folder.parent.rmdir()


@SLOW
@pytest.mark.qemus(*NEWEST)
async def test_a_kept_machine_goes_back_and_no_record_has_the_secret(
    qemu: str, tmp_path: Path, on_two: Disk, places: Places
) -> None:
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(_with(qemu, on_two), paused=True)
            assert kept.vm is not None
            await write(kept.vm, "disk0", 0, 101)
            await kept.vm.snapshots.take("one")
            await write(kept.vm, "disk0", 0, 102)
            await supervisor.declare("bare", "stopped")
            await supervisor.revert("bare", "one")
        async with lab() as supervisor:
            kept = await supervisor.ensure(_with(qemu, on_two), paused=True)
            assert kept.vm is not None
            await write(kept.vm, "disk0", 1, 103)
            await kept.vm.disks.flatten("disk0")
            await supervisor.declare("bare", "stopped")
            spec = kept.spec
        await end_all()
    _nowhere_in_clear(tmp_path, 101, 102, 103)  # the state directory is there, too
    assert places.state.is_relative_to(tmp_path)
    await _holds(spec, {0: 101, 1: 103})
