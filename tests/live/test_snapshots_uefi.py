"""UEFI variables go back with the disks, with and without the RAM."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import attrs
import pytest

import qmpkit
from qmpkit import Disk, HostLacks, MachineSpec, SpecInvalid, State
from qmpkit.host.firmware import find_firmware
from qmpkit.spec.firmware import Uefi
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.blocks import qemu_io
from tests.live.kept import Places, end_all, lab
from tests.sizes import NEWEST, RAM_CANCELS, STORES

pytestmark = [pytest.mark.live, pytest.mark.qemus(*NEWEST)]


@pytest.fixture
def spec(qemu: str, tmp_path: Path) -> MachineSpec:
    """With a store of its own, and a disk."""
    try:
        find_firmware("x86_64", secure_boot=False)
    except HostLacks as lacks:
        pytest.skip(str(lacks))
    folder = tmp_path / "disks"
    folder.mkdir()
    return MachineSpec(
        name="bare",
        qemu=qemu,
        accel="tcg",
        memory="64MiB",
        firmware=Uefi(vars=str(folder / "web.vars")),
        disks=[Disk(str(folder / "0.qcow2"), format="qcow2", make="16MiB")],
    )


def qcow2_firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some distributions ship it: its empty store is a qcow2."""
    found = find_firmware("x86_64", secure_boot=False)
    template = tmp_path / "empty.qcow2"
    words = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", found.template, str(template)]
    subprocess.run(words, check=True)
    descriptor = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": found.code, "format": "raw"},
            "nvram-template": {"filename": str(template), "format": "qcow2"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": [],
    }
    folder = tmp_path / "config/qemu/firmware"
    folder.mkdir(parents=True)
    (folder / "00-first.json").write_text(json.dumps(descriptor))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


async def scribble(vm: qmpkit.VM, pattern: int) -> None:
    """Write into the store as the chip does."""
    line = f'qemu-io qk-pflash1 "write -P {pattern} 262144 4096"'
    await vm.execute("human-monitor-command", {"command-line": line})


async def scribbled(store: str | None, format: str, pattern: int) -> bool:
    assert store is not None
    done = await qemu_io(store, format, f"read -P {pattern} 262144 4096")
    assert done.returncode == 0, done.stdout
    return b"verification failed" not in done.stdout


def store_of(spec: MachineSpec) -> str | None:
    assert isinstance(spec.firmware, Uefi)
    return spec.firmware.vars


def names_in(spec: MachineSpec) -> list[str]:
    return sorted(path.name for path in Path(spec.disks[0].file).parent.iterdir())


@pytest.mark.parametrize("format", STORES)
async def test_without_ram_they_are_those_of_the_snapshot(
    spec: MachineSpec, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if format == "qcow2":
        qcow2_firmware(tmp_path, monkeypatch)
    async with leaks():
        async with qmpkit.running(spec, paused=True) as vm:
            await scribble(vm, 1)
            point = await vm.snapshots.take("one")
            await scribble(vm, 2)
            first = vm.spec
        assert point.variables == str(Path(spec.disks[0].file).with_name("web.one.vars"))
        assert await scribbled(point.variables, format, 1)
        async with qmpkit.at_rest(first) as machine:
            await machine.snapshots.take("two")
            first = machine.spec
        back = await qmpkit.reverted(first, "one")
        assert await scribbled(store_of(back), format, 1)
        assert await scribbled(store_of(first), format, 2), "which is left"
        async with qmpkit.running(back, paused=True) as vm:
            await scribble(vm, 3)
            assert vm.spec.firmware == back.firmware
            await vm.snapshots.take("three")
            assert Path(str(vm.snapshots.list()[-1].variables)).name == "web.three.vars"
            await vm.snapshots.delete("two")
            await vm.snapshots.delete("three")
            await vm.snapshots.delete("one")
            left = names_in(vm.spec)
        assert not [name for name in left if name in ("web.one.vars", "web.two.vars")]
        assert {"web.vars", "web.one-1.vars"} <= {*left}


async def test_cancelled_no_copy_is_left(spec: MachineSpec) -> None:
    async with leaks(), qmpkit.running(spec) as vm:
        names = names_in(vm.spec)

        async def take() -> None:
            await vm.snapshots.take("one")

        async def after() -> None:
            assert vm.state is State.RUNNING
            if vm.snapshots.list():
                await vm.snapshots.delete("one")
            assert names_in(vm.spec) == names

        await cancel_at_every_checkpoint(take, every=RAM_CANCELS, after=after)
        (Path(vm.spec.disks[0].file).parent / "web.one.vars").touch()
        with pytest.raises(SpecInvalid, match=r"web\.one\.vars' is there already"):
            await vm.snapshots.take("one")


async def test_with_ram_they_are_what_the_chip_held(spec: MachineSpec) -> None:
    """Which is not what stands in the file here, so that it can be told."""
    async with leaks():
        async with qmpkit.running(spec, paused=True) as vm:
            empty = content(vm.spec)
            await scribble(vm, 1)
            await vm.snapshots.save("inside")
            await vm.snapshots.load("inside")
            await vm.resume()
            await vm.pause()
            assert content(vm.spec) == empty
            await scribble(vm, 2)
            point = await vm.snapshots.take("beside", ram=True)
            await scribble(vm, 3)
            after = vm.spec
        back = await qmpkit.reverted(after, "beside")
        assert point.variables is not None and content(back) == file_content(point.variables)
        assert content(back) not in (empty, content(after))
        async with qmpkit.running(back) as vm:
            await vm.pause()
            assert content(vm.spec) == empty


def content(spec: MachineSpec) -> bytes:
    return file_content(str(store_of(spec)))


def file_content(file: str) -> bytes:
    return Path(file).read_bytes()


@pytest.mark.usefixtures("places")
async def test_a_kept_machine_goes_on_with_them(spec: MachineSpec, places: Places) -> None:
    async with leaks():
        async with lab() as supervisor:
            kept = await supervisor.ensure(spec, paused=True)
            assert kept.vm is not None
            await scribble(kept.vm, 1)
            await kept.vm.snapshots.take("one")
            await scribble(kept.vm, 2)
            await supervisor.declare("bare", "stopped")
            left = await supervisor.revert("bare", "one")
            assert [Path(file).name for file in left] == ["0.one.qcow2", "web.vars"]
        async with lab() as supervisor:
            changed = attrs.evolve(spec, memory="80MiB")
            kept = await supervisor.ensure(changed, paused=True)
            assert Path(str(store_of(kept.spec))).name == "web.one-1.vars"
            await supervisor.declare("bare", "stopped")
            assert await scribbled(store_of(kept.spec), "raw", 1)
        await end_all()
