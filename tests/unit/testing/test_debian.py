"""What of the Debian guest needs no archive: layout, loaders, files, and what is missing."""

from __future__ import annotations

import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from qmpkit.errors import HostLacks
from qmpkit.testing.guests.debian import disk, loader, programs, recipe

UUID = "4d9c2fd0-6c9e-4a52-9d7c-0f7c7d1c3b52"


def test_the_partitions_follow_each_other_and_leave_room_for_the_second_table() -> None:
    end = 1 << 20
    for part in disk.LAYOUT:
        assert part.start >= end
        assert part.start % (1 << 20) == 0
        end = part.start + part.size
    assert disk.SIZE - end == 1 << 20
    assert disk.LAYOUT[-1].name == "root", "so that it can grow"


def test_the_table_is_in_sectors() -> None:
    lines = disk.table(UUID).splitlines()
    assert lines[:2] == ["label: gpt", f"label-id: {UUID}"]
    assert lines[2].startswith("start=2048, size=2048, type=21686148-")


def test_the_boot_sector_leads_to_the_core_and_leaves_the_partition_table_alone() -> None:
    boot = loader.boot_sector(bytes(range(256)) * 2, 2048)
    assert len(boot) == 440
    assert struct.unpack_from("<Q", boot, 0x5C) == (2048,)


def test_the_core_knows_where_the_rest_of_it_lies_and_how_long_it_is() -> None:
    blocklist = struct.pack("<QHH", 2, 100, 0x820)
    core = loader.core_image(bytes(500) + blocklist + bytes(512), 2048)
    assert struct.unpack_from("<QHH", core, 500) == (2049, 100, 0x820)
    assert len(core) == 1024


def test_our_files_are_roots_and_name_the_root_file_system(tmp_path: Path) -> None:
    recipe.write_tar(tmp_path / "own.tar", recipe.files(UUID))
    with tarfile.open(tmp_path / "own.tar") as archive:
        members = {member.name: member for member in archive}
        assert all((member.uid, member.gid) == (0, 0) for member in members.values())
        for name in ("etc/fstab", "boot/grub/grub.cfg"):
            file = archive.extractfile(name)
            assert file is not None
            assert f"UUID={UUID}".encode() in file.read()
    masked = members["etc/systemd/system/apt-daily.timer"]
    assert masked.linkname == "/dev/null"


def test_everything_that_is_missing_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mke2fs", "tar", "setpriv", "unshare"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(programs, "_PATH", str(tmp_path))
    with pytest.raises(HostLacks) as caught:
        programs.check_programs()
    for word in ("mmdebstrap", "sfdisk", "mcopy", "mkfs.vfat", "qemu-img"):
        assert word in caught.value.what
    assert "mke2fs" not in caught.value.what
    assert "apt install dosfstools fdisk mmdebstrap mtools qemu-utils" in caught.value.cure


def test_a_program_that_fails_is_quoted(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    script = "import sys; print(sys.stdin.read()); print('why', file=sys.stderr); sys.exit(3)"
    with pytest.raises(programs.BuildFailed, match="why"):
        programs.run([sys.executable, "-c", script], progress=said.append, input="given")
    assert sorted(said) == ["given", "why"]
    assert capfd.readouterr() == ("", "")


def test_the_guests_own_python_is_not_told_how_ours_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    said: list[str] = []
    script = "import os; print([key for key in os.environ if key.startswith('PYTHON')])"
    programs.run([sys.executable, "-c", script], progress=said.append)
    assert said == ["[]"]


def test_the_command_alone_is_enough_to_build_debian() -> None:
    """`qmpkit[cli]` has it; tiny needs the extra for tests, and says so in one line."""
    program = """
import sys
sys.modules["elftools"] = sys.modules["lz4"] = None
from qmpkit.testing import guests
assert callable(guests.build_debian)
try:
    guests.build_tiny
except Exception as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.startswith("the test guests need elftools")
    assert "pip install 'qmpkit[testing]'" in done.stdout
