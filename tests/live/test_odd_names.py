"""Commas, quotes, spaces and newlines wherever QEMU is given a name or a path, for real."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest

import qmpkit
from qmpkit import (
    DgramNic,
    Disk,
    Kernel,
    LaunchOptions,
    MachineSpec,
    Memory,
    Overlay,
    SpecInvalid,
    StreamNic,
)
from qmpkit._paths import cache_dir
from qmpkit.testing import guests
from qmpkit.testing.leaks import leaks

pytestmark = pytest.mark.live

# What breaks a list of options, JSON, a shell, a format string, an URL, and a terminal.
ODD = """a,,b="c" 'd'=%s\\n:$HOME\ne,ü"""
NAME = """web, "the" 'best' =100% \\ ü"""


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A directory that is called that."""
    folder = tmp_path / ODD
    folder.mkdir()
    return folder


@pytest.fixture
def spec(qemu: str, odd: Path) -> MachineSpec:
    """A machine that has an odd path wherever one is legal."""
    firmware = guests.build_kvm_tiny() / "firmware.bin"
    (odd / f"bios{ODD}").write_bytes(firmware.read_bytes())
    (odd / "qemu").symlink_to(qemu)
    return MachineSpec(
        name=NAME,
        qemu=odd / "qemu",
        accel="tcg",
        memory=Memory("16MiB", mem_path=odd / f"ram{ODD}", share=True),
        firmware=odd / f"bios{ODD}",
        env={"ODD": ODD},
        launcher=[str(_script(odd / f"launch{ODD}")), ODD],
        disks=[
            Disk(odd / f"raw{ODD}", format="raw", make="1MiB", serial="""a,"b" 'c'"""),
            Disk(
                odd / f"over{ODD}",
                format="qcow2",
                make=Overlay(odd / f"base{ODD}", format="qcow2"),
            ),
            Disk(odd / f"nvme{ODD}", format="qcow2", make="1MiB", interface="nvme"),
        ],
        nics=[
            StreamNic(address=f"unix:{odd}/s,1 '\"", server=True),
            DgramNic(local=f"unix:{odd}/d,1 '\"", remote=f"unix:{odd}/d,2"),
        ],
    )


def _script(path: Path) -> Path:
    path.write_text('#!/bin/sh\nLAUNCHED_BY="$1"; export LAUNCHED_BY; shift; exec "$@"\n')
    path.chmod(0o755)
    return path


async def test_odd_paths(spec: MachineSpec, odd: Path) -> None:
    await qmpkit.images.create(odd / f"base{ODD}", "1MiB", "qcow2")
    options = LaunchOptions(tools_socket=odd / "t,'\"")
    async with leaks(), qmpkit.running(spec, logs=odd / f"logs{ODD}", options=options) as vm:
        await vm.console.expect(guests.KVM_TINY_READY)  # the firmware is the one named so
        assert (await vm.execute("query-name"))["name"] == NAME
        nodes = await vm.execute("query-named-block-nodes", {"flat": True})
        # qemu-img writes a base with a colon in its name as "./…", or it would be an URL.
        files = {str(Path(node["file"])) for node in nodes if node["drv"] == "file"}
        assert files == {str(odd / f"{kind}{ODD}") for kind in ("raw", "over", "base", "nvme")}
        ram = {"path": "/objects/ram0", "property": "mem-path"}
        assert await vm.execute("qom-get", ram) == str(odd / f"ram{ODD}")
        assert _environment(vm.pid) >= {f"ODD={ODD}", f"LAUNCHED_BY={ODD}"}
        async with qmpkit.connect(odd / "t,'\"") as tools:
            assert (await tools.execute("query-name"))["name"] == NAME
    assert guests.KVM_TINY_READY in _text(odd / f"logs{ODD}" / "serial0.log")


async def test_odd_kernel(qemu: str, odd: Path) -> None:
    """QEMU reads both files at its start, and tells the guest of the words as they are."""
    tiny = qmpkit.load_profile("tiny").kernel
    assert tiny is not None
    words = """a="b, c" 'd',,e=%s"""
    image, initrd = _linked(tiny.image, odd / f"k{ODD}"), _linked(tiny.initrd, odd / f"i{ODD}")
    kernel = Kernel(image, initrd, f"{tiny.append} {words}")
    async with leaks():
        spec = attrs.evolve(qmpkit.load_profile("tiny"), name=NAME, qemu=qemu, accel="tcg")
        async with qmpkit.running(attrs.evolve(spec, kernel=kernel)) as vm:
            await vm.console.expect("tiny# ")
            await vm.console.send_line("cat /proc/cmdline")
            await vm.console.expect(words)


def _linked(target: str | None, link: Path) -> Path:
    assert target is not None
    link.symlink_to(target.replace("${cache}", str(cache_dir())))
    return link


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("a\nb", r"'a\nb' holds a character that cannot be printed on one line"),
        ("a/b", "'a/b' holds a '/'"),
        (" a", "' a' may not begin with '.', '-' or a space, nor end with a space"),
    ],
)
async def test_names_that_no_machine_can_have(name: str, complaint: str) -> None:
    """A name is also a directory, and a line in a table."""
    with pytest.raises(qmpkit.SpecInvalid) as caught:
        async with qmpkit.running(MachineSpec(name=name, accel="tcg")):
            pytest.fail("it started")
    assert str(caught.value) == f"machine {name!r}: name: {complaint}"


def _environment(pid: int) -> set[str]:
    return set(Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0"))


def _text(path: Path) -> str:
    return path.read_text()


async def test_a_disk_does_not_move_to_what_is_no_text(qemu: str, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "a.raw", format="raw", make="1MiB")
    spec = MachineSpec(name="m", qemu=qemu, accel="tcg", memory=Memory("16MiB"), disks=[disk])
    async with leaks(), qmpkit.running(spec) as vm:
        for name in ("\udcff", "\uffff"):
            with pytest.raises(SpecInvalid, match=r"target: .*QEMU takes no"):
                await vm.disks.move("disk0", tmp_path / name)
    assert os.listdir(tmp_path) == ["a.raw"]  # noqa: PTH208
