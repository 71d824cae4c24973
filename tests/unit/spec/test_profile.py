"""Profiles: found in the wheel and in the checkout, extended, resolved, and told apart."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import qmpkit
from qmpkit.errors import SpecInvalid
from qmpkit.spec import profile
from qmpkit.spec.block import Overlay
from qmpkit.spec.cpu import Cpu
from qmpkit.spec.data import spec_from_toml, spec_to_toml
from qmpkit.spec.paths import PATHS
from qmpkit.spec.peripherals import Rng, Share
from qmpkit.spec.profile import load_profile, profile_names, profiles_dir
from qmpkit.spec.sizes import GIB, MIB

CHECKOUT = Path(qmpkit.__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def faults(path: Path | str) -> list[str]:
    with pytest.raises(SpecInvalid) as caught:
        load_profile(path)
    return [str(fault) for fault in caught.value.faults]


def test_the_shipped_profiles_are_there() -> None:
    assert {"q35", "microvm"} <= set(profile_names())
    assert list(profile_names()) == sorted(profile_names())


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_survives_toml(name: str) -> None:
    spec = load_profile(name)
    assert spec_from_toml(spec_to_toml(spec)) == spec
    assert spec_from_toml(spec_to_toml(spec, defaults=False)) == spec


def test_q35_is_a_headless_server() -> None:
    spec = load_profile("q35")
    assert (spec.machine, spec.display, spec.root_ports) == ("q35", "none", 4)
    assert spec.agent
    assert spec.rng
    assert spec.balloon
    assert [serial.name for serial in spec.serials] == ["serial0"]
    assert [type(nic).__name__ for nic in spec.nics] == ["UserNic"]


@pytest.mark.parametrize("name", ["q35", "microvm"])
def test_linux_survives_tcg_in_the_shipped_profiles(name: str) -> None:
    kernel = load_profile(name).kernel
    assert kernel is not None
    assert "no_timer_check" in kernel.append.split()
    assert ("tsc_early_khz=${tsc_khz}" in kernel.append.split()) == (name == "microvm")


def test_extends_adds_to_tables_and_replaces_lists(folder: Path) -> None:
    write(
        folder / "base.toml",
        """
        schema = 1
        extends = "q35"
        name = "base"
        memory = "2GiB"
        launcher = ["a", "b"]
        [cpu]
        cpus = 2
        model = "max"
        [env]
        A = "1"
        """,
    )
    write(
        folder / "web.toml",
        """
        schema = 1
        extends = "base.toml"
        name = "web"
        launcher = ["c"]
        nics = []
        [cpu]
        cpus = 4
        [env]
        B = "2"
        """,
    )
    spec = load_profile(folder / "web.toml")
    assert spec.name == "web"
    assert spec.memory.size == 2 * GIB
    assert spec.cpu == Cpu(4, model="max")
    assert spec.env == {"A": "1", "B": "2"}
    assert spec.launcher == ("c",)
    assert spec.nics == ()
    assert spec.root_ports == 4


def test_a_table_replaces_a_short_form(folder: Path) -> None:
    text = 'schema = 1\nextends = "q35"\n[memory]\nsize = "64MiB"\nshare = true\n'
    assert load_profile(write(folder / "a.toml", text)).memory.size == 64 * MIB


def test_a_short_form_replaces_the_size_of_a_table(folder: Path) -> None:
    write(folder / "base.toml", 'schema = 1\n[memory]\nsize = "64MiB"\nshare = true\n')
    text = 'schema = 1\nextends = "base.toml"\nmemory = "1GiB"\n'
    memory = load_profile(write(folder / "a.toml", text)).memory
    assert (memory.size, memory.share) == (GIB, True)


def test_relative_paths_count_from_their_own_file(folder: Path) -> None:
    write(
        folder / "base" / "base.toml",
        'schema = 1\nfirmware = "bios.bin"\n[kernel]\nimage = "../k"\n[memory]\nmem_path = "ram"\n'
        "share = true\n",
    )
    write(
        folder / "web.toml",
        """
        schema = 1
        extends = "base/base.toml"
        image_folders = ["images", "/srv/images"]
        [kernel]
        initrd = "${cache}/initrd"
        [[disks]]
        file = "web.qcow2"
        format = "qcow2"
        make = {file = "images/debian.qcow2", format = "qcow2"}
        [[disks]]
        file = "/dev/null"
        format = "raw"
        [[devices]]
        kind = "rng"
        file = "noise"
        [[devices]]
        kind = "virtiofs"
        tag = "home"
        path = "shared"
        """,
    )
    spec = load_profile(folder / "web.toml")
    rng, share = spec.devices
    assert rng == Rng(id="rng1", file=f"{folder}/noise")
    assert isinstance(share, Share)
    assert share.path == f"{folder}/shared"
    assert spec.firmware == f"{folder}/base/bios.bin"
    assert spec.memory.mem_path == f"{folder}/base/ram"
    assert spec.kernel is not None
    assert spec.kernel.image == f"{folder}/k"
    assert spec.kernel.initrd == "${cache}/initrd"
    assert [disk.file for disk in spec.disks] == [f"{folder}/web.qcow2", "/dev/null"]
    assert spec.disks[0].make == Overlay(f"{folder}/images/debian.qcow2", format="qcow2")
    assert spec.image_folders == (f"{folder}/images", "/srv/images")
    assert len(PATHS) == 18  # a path field that comes new belongs here too


def test_a_relative_profile_counts_from_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "sub" / "web.toml", 'schema = 1\nfirmware = "bios.bin"\n')
    monkeypatch.chdir(folder)
    assert load_profile("sub/web.toml").firmware == f"{folder}/sub/bios.bin"
    monkeypatch.chdir(folder / "sub")
    assert load_profile("web.toml").firmware == f"{folder}/sub/bios.bin"
    assert load_profile(Path("web.toml")).firmware == f"{folder}/sub/bios.bin"


def test_faults_of_a_file_name_it_and_its_base(folder: Path) -> None:
    write(folder / "base.toml", "schema = 1\nagent = 1\n")
    path = write(folder / "web.toml", 'schema = 1\nextends = "base.toml"\ncpu = "2"\n')
    with pytest.raises(SpecInvalid) as caught:
        load_profile(path)
    assert caught.value.source == f"{path} (extends {folder}/base.toml)"
    assert [fault.path for fault in caught.value.faults] == ["cpu", "agent"]


def test_a_name_that_is_not_shipped() -> None:
    assert faults("q53") == ["there is no profile 'q53' (did you mean 'q35'?)"]
    listed = ", ".join(profile_names())
    assert faults("zzzzzz") == [
        f"there is no profile 'zzzzzz' (shipped: {listed}; a file: ./zzzzzz.toml)"
    ]


def test_a_base_that_is_not_there(folder: Path) -> None:
    path = write(folder / "a.toml", 'schema = 1\nextends = "q53"\n')
    assert faults(path) == ["extends: there is no profile 'q53' (did you mean 'q35'?)"]
    path = write(folder / "a.toml", 'schema = 1\nextends = "./b.toml"\n')
    assert faults(path) == [f"extends: {folder}/b.toml cannot be read: No such file or directory"]
    path = write(folder / "a.toml", "schema = 1\nextends = 5\n")
    assert faults(path) == ["extends: must be a profile's name or a path"]


def test_profiles_in_a_circle(folder: Path) -> None:
    write(folder / "a.toml", 'schema = 1\nextends = "b.toml"\n')
    write(folder / "b.toml", 'schema = 1\nextends = "a.toml"\n')
    assert faults(folder / "a.toml") == ["extends: 'a.toml' extends itself"]
    path = write(folder / "c.toml", 'schema = 1\nextends = "c.toml"\n')
    assert faults(path) == ["extends: 'c.toml' extends itself"]


def test_extends_through_symlinks(folder: Path) -> None:
    path = write(folder / "a.toml", 'schema = 1\nextends = "b.toml"\n')
    (folder / "b.toml").symlink_to("a.toml")
    assert faults(path) == ["extends: 'b.toml' extends itself"]
    (folder / "b.toml").unlink()
    (folder / "b.toml").symlink_to("b.toml")
    why = "Too many levels of symbolic links"
    assert faults(path) == [f"extends: {folder}/b.toml cannot be read: {why}"]


def test_each_file_of_a_chain_says_its_schema(folder: Path) -> None:
    write(folder / "base.toml", "schema = 2\n")
    path = write(folder / "a.toml", 'schema = 1\nextends = "base.toml"\n')
    assert faults(path) == ["schema: 2 is newer than the 1 this qmpkit reads (update qmpkit)"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"schema = 1\nname = \xff\n", "this is not UTF-8"),
        (b"schema = 1\nname = web\n", "this is not TOML: Invalid value (at line 2, column 8)"),
        (b"", "schema: is missing (schema = 1)"),
        (b"schema = 1\nx = " + b"[" * 5000, "this is not TOML: "),
        (b"schema = 1\nvsock = " + b"9" * 5000, "this is not TOML: "),
        (b"schema = 1\n" + b"a." * 2000 + b"b = 1", "tables and lists are nested more than 20"),
        (b'schema = 1\nextends = "./a\\u0000b"', "extends: './a\\x00b' holds a NUL character"),
    ],
    ids=range(7),
)
def test_files_that_are_no_profile(folder: Path, content: bytes, fault: str) -> None:
    path = folder / "a.toml"
    path.write_bytes(content)
    assert [text[: len(fault)] for text in faults(path)] == [fault]


def test_a_file_that_is_not_there(folder: Path) -> None:
    assert faults(folder / "no.toml") == ["cannot be read: No such file or directory"]
    assert faults(folder) == ["cannot be read: Is a directory"]


def test_profiles_come_from_the_checkout_of_an_editable_install() -> None:
    assert profiles_dir() == CHECKOUT / "profiles"


def test_profiles_come_with_the_wheel(folder: Path) -> None:
    """A wheel, unpacked where no checkout is near, has every profile."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", os.fspath(folder)],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {os.fspath(site)!r}); import qmpkit;"
            "print(qmpkit.__file__, *qmpkit.profile_names());"
            "[qmpkit.load_profile(name) for name in qmpkit.profile_names()]",
        ],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert found == [f"{site}/qmpkit/__init__.py", *profile_names()]


def test_the_module_reads_only_when_asked() -> None:
    assert profile.load_profile is qmpkit.load_profile


def test_a_farms_file_is_told_from_a_profile(folder: Path) -> None:
    path = write(folder / "farm.toml", "schema = 1\n[defaults]\n[machines.web]\n")
    assert faults(path) == [
        "machines: this is a farm's file, not a profile"
        " (qmpkit up has its machines run; a profile describes one)"
    ]
