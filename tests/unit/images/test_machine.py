"""The machine that is made around a disk image nobody knows."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.errors import SpecInvalid
from qmpkit.images import machine as module
from qmpkit.images import machine_for
from qmpkit.images.boot import LOOK_AT
from qmpkit.images.machine import name_from
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.check import faults_of
from qmpkit.spec.firmware import Uefi
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import machine_name_problem
from qmpkit.spec.network import Forward, UserNic
from qmpkit.spec.sizes import GIB, MIB
from qmpkit.testing.guests.boot_sector import boot_disk
from tests.unit.images.partitions import BIOS_BOOT, ESP, ROOT_ARM, ROOT_RISCV, ROOT_X86, partitioned


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "stranger.img"
    path.write_bytes(boot_disk())
    return path


def qemu_img(*words: str) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True, timeout=20)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_the_whole_machine(disk: Path, tmp_path: Path) -> None:
    spec = await machine_for(disk, overlay=tmp_path / "work.qcow2", memory="1GiB", cpus=3)
    assert spec == MachineSpec(
        name="stranger",
        memory="1GiB",
        cpu=3,
        disks=[
            Disk(
                tmp_path / "work.qcow2",
                format="qcow2",
                make=Overlay(disk, format="raw"),
                boot=0,
            )
        ],
        nics=[UserNic(forwards=[Forward(0, 22)])],
        agent=True,
        rng=True,
        balloon=True,
        root_ports=4,
    )
    assert not list(faults_of(spec))
    assert names(tmp_path) == [disk.name], "it has effects"


async def test_written_into(disk: Path) -> None:
    spec = await machine_for(disk, write=True, name="own", forwards=["8080:80"])
    assert spec.name == "own"
    assert spec.disks == (Disk(disk, format="raw", boot=0, id="disk0"),)
    (nic,) = spec.nics
    assert isinstance(nic, UserNic)
    assert nic.forwards == (Forward(8080, 80),)


@pytest.mark.parametrize(
    ("label", "parts", "code", "arch", "machine", "firmware"),
    [
        ("gpt", [BIOS_BOOT, ESP, ROOT_X86], True, "x86_64", "q35", None),
        ("gpt", [ESP, ROOT_X86], False, "x86_64", "q35", Uefi()),
        ("gpt", [ESP, ROOT_ARM], False, "aarch64", "virt", Uefi()),
        ("gpt", [ESP, ROOT_RISCV], False, "riscv64", "virt", Uefi()),
        ("dos", ["83"], True, "x86_64", "q35", None),
        ("dos", ["ef"], False, None, None, Uefi()),
    ],
)
async def test_board_and_firmware_by_the_partitions(
    label: str,
    parts: list[str],
    code: bool,
    arch: str | None,
    machine: str | None,
    firmware: Uefi | None,
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.raw"
    path.write_bytes(partitioned(tmp_path, label, *(f"type={p}" for p in parts), code=code))
    spec = await machine_for(path, write=True)
    assert spec.arch == (arch or platform.machine())
    assert machine is None or spec.machine == machine
    assert spec.firmware == firmware
    asked = await machine_for(path, write=True, arch="aarch64")
    assert (asked.arch, asked.machine) == ("aarch64", "virt")
    assert asked.firmware == Uefi()
    pc = await machine_for(path, write=True, arch="x86_64", firmware="bios")
    assert (pc.machine, pc.firmware) == ("q35", None)


async def test_a_cd_becomes_a_drive(tmp_path: Path) -> None:
    path = tmp_path / "live.iso"
    content = bytearray(LOOK_AT)
    content[32768:32774] = b"\1CD001"
    path.write_bytes(content)
    (drive,) = (await machine_for(path, arch="x86_64")).disks
    assert (drive.interface, drive.format, drive.make) == ("cdrom", "raw", None)
    (drive,) = (await machine_for(path, arch="aarch64")).disks
    assert drive.interface == "scsi-cdrom"
    with pytest.raises(SpecInvalid, match="this is a CD, which no guest writes to"):
        await machine_for(path, write=True)


async def test_other_formats_are_bases_only(disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    qemu_img("convert", "-f", "raw", "-O", "vmdk", str(disk), str(path))
    (made,) = (await machine_for(path, overlay="o.qcow2")).disks
    assert made.make == Overlay(path, format="vmdk")
    with pytest.raises(SpecInvalid, match=r"this is vmdk \(qmpkit image convert a.vmdk a.qcow2\)"):
        await machine_for(path, write=True)


@pytest.mark.parametrize(
    ("wishes", "why"),
    [
        ({}, "overlay: it is not said where the guest's writes go"),
        ({"write": True, "overlay": "o"}, "into the image or into an overlay, not into both"),
        ({"write": True, "arch": "mips"}, "arch: 'mips' is no architecture that qmpkit knows"),
        ({"write": True, "arch": "aarch64", "firmware": "bios"}, "aarch64 has no BIOS"),
        ({"write": True, "memory": "1X"}, "'1X' has an unknown unit"),
        ({"overlay": "stranger.img"}, "'stranger.img' exists and is no overlay of this image"),
    ],
)
async def test_wishes_that_do_not_fit(
    wishes: dict[str, Any], why: str, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(disk.parent)
    with pytest.raises(SpecInvalid) as caught:
        await machine_for(disk, **wishes)
    assert why in str(caught.value)


async def test_an_overlay_that_is_there_is_used_again(disk: Path, tmp_path: Path) -> None:
    work = tmp_path / "work.qcow2"
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", disk.name, str(work))
    spec = await machine_for(disk, overlay=work)
    assert spec.disks[0].make == Overlay(disk, format="raw")
    other = tmp_path / "other.img"
    other.write_bytes(boot_disk())
    with pytest.raises(SpecInvalid, match="exists and is no overlay of this image"):
        await machine_for(other, overlay=work)


@pytest.mark.parametrize(
    ("available", "memory"),
    [("64000000 kB", 2 * GIB), ("2000000 kB", 960 * MIB), ("300000 kB", 512 * MIB), ("", 2 * GIB)],
)
async def test_memory_is_bounded_by_the_hosts(
    available: str, memory: int, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = f"MemTotal: 1 kB\nMemAvailable:  {available}\n" if available else ""
    monkeypatch.setattr(module, "read_text", lambda path: told)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    spec = await machine_for(disk, write=True)
    assert (spec.memory.size, spec.cpu.cpus) == (memory, 1)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/a/debian-12.qcow2", "debian-12"),
        ("noble.server.img", "noble.server"),
        (".hidden.img", "hidden"),
        ("-.qcow2", "vm"),
        ("my disk, 2.raw", "my disk, 2"),
        ("tab\there.img", "tabhere"),
    ],
)
def test_the_name_comes_from_the_files(file: str, name: str) -> None:
    assert name_from(Path(file)) == name


@given(st.binary(min_size=1, max_size=255).filter(lambda b: not {0, 47} & set(b)))
def test_any_file_name_gives_a_machines_name(name: bytes) -> None:
    assert machine_name_problem(name_from(Path(os.fsdecode(name)))) == ""
