"""The files of a machine before its start: every fault names the field and the cure."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from qmpkit.errors import BinaryMissing, ImageInUse
from qmpkit.host import check_files
from qmpkit.host.check_files import base_warnings, raw_warnings
from qmpkit.host.preflight import preflight
from qmpkit.spec.block import Disk, Overlay
from qmpkit.spec.machine import Kernel, MachineSpec
from qmpkit.spec.network import Forward, UserNic
from tests.unit.host.images_on_disk import qcow2, raw


def told(spec: MachineSpec) -> list[str]:
    return [str(problem.fault) for problem in preflight(spec)]


def one_disk(file: Path, format: str = "qcow2", **more: Any) -> MachineSpec:
    disk = Disk(file, format=format, **more)  # type: ignore[arg-type]
    return MachineSpec(disks=(disk,))


# --- images


def test_nothing_to_complain_about(tmp_path: Path) -> None:
    spec = MachineSpec(
        kernel=Kernel(raw(tmp_path / "kernel"), raw(tmp_path / "initrd")),
        firmware=str(raw(tmp_path / "bios")),
        disks=(
            Disk(qcow2(tmp_path / "a,b\n'c'"), format="qcow2"),
            Disk(raw(tmp_path / "raw"), format="raw"),
            Disk(tmp_path / "new", format="qcow2", make="1GiB"),
        ),
        nics=(UserNic(forwards=(Forward(0, 22),)),),
    )
    assert told(spec) == []


def test_missing_test_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPKIT_CACHE_DIR", str(tmp_path))
    vmlinux = str(tmp_path / "guests/tiny/vmlinux")
    assert told(MachineSpec(kernel=Kernel(vmlinux))) == [
        f"kernel.image: {vmlinux!r} does not exist (python -m qmpkit.testing.guests tiny makes it)"
    ]


def test_missing_image(tmp_path: Path) -> None:
    path = tmp_path / "absent.qcow2"
    assert told(one_disk(path)) == [
        f'disks[0].file: {str(path)!r} does not exist (make = "10GiB" has it made at start)'
    ]


def test_missing_image_with_a_similar_name(tmp_path: Path) -> None:
    qcow2(tmp_path / "debian.qcow2")
    path = tmp_path / "debain.qcow2"
    assert told(one_disk(path)) == [
        f"disks[0].file: {str(path)!r} does not exist (did you mean 'debian.qcow2'?)"
    ]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({}, "a qcow2 image"),
        ({"backing": "/etc/shadow"}, "a qcow2 image with the base '/etc/shadow'"),
        ({"data_file": "/etc/shadow"}, "a qcow2 image with its content in '/etc/shadow'"),
    ],
)
def test_qcow2_said_to_be_raw_is_raw(tmp_path: Path, more: dict[str, str], what: str) -> None:
    """Its guest may have written that header: to believe it would show the guest the base."""
    path = qcow2(tmp_path / "image", **more)  # type: ignore[arg-type]
    spec = one_disk(path, "raw")
    assert told(spec) == []
    assert list(raw_warnings(spec)) == [
        f"disks[0]: {str(path)!r} is used as raw, which is stated, but it begins as {what} does: "
        'format = "qcow2" is right only if it is that, and not a disk whose guest has written it'
    ]


def test_a_base_said_to_be_raw_is_raw(tmp_path: Path) -> None:
    base = qcow2(tmp_path / "base")
    spec = one_disk(tmp_path / "top", make=Overlay(base, format="raw"))
    assert told(spec) == []
    (found,) = raw_warnings(spec)
    assert found.startswith(f"disks[0].make: {str(base)!r} is used as raw, which is stated, but ")
    qcow2(tmp_path / "top")  # from now on it says itself what its base is
    assert list(raw_warnings(spec)) == []


def test_what_is_raw_or_not_there_is_no_surprise(tmp_path: Path) -> None:
    disks = (
        Disk(raw(tmp_path / "raw"), format="raw"),
        Disk(tmp_path / "absent", format="raw"),
        Disk(tmp_path / "new", format="raw", make="1GiB"),
        Disk(qcow2(tmp_path / "image"), format="qcow2"),
    )
    assert list(raw_warnings(MachineSpec(disks=disks))) == []


def test_raw_said_to_be_qcow2(tmp_path: Path) -> None:
    path = raw(tmp_path / "image")
    assert told(one_disk(path)) == [
        f'disks[0].format: {str(path)!r} is raw, not qcow2 (format = "raw")'
    ]


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        (b"", 'is empty, not qcow2 (remove it and have it made with make = "10GiB")'),
        (b"KDMV", "is vmdk, not qcow2 (qemu-img convert -f vmdk -O qcow2)"),
        (b"\xfd7zXZ\0", "is compressed (xz), not qcow2 (unpack it)"),
    ],
)
def test_other_formats(tmp_path: Path, content: bytes, ending: str) -> None:
    path = raw(tmp_path / "image", content)
    assert told(one_disk(path)) == [f"disks[0].format: {str(path)!r} {ending}"]


@pytest.mark.parametrize(
    ("content", "what", "cure"),
    [
        (b"\xfd7zXZ\0", "a compressed file (xz)", "unpack it"),
        (b"KDMV", "a vmdk image", "convert it"),
    ],
)
def test_what_else_is_said_to_be_raw(tmp_path: Path, content: bytes, what: str, cure: str) -> None:
    path = raw(tmp_path / "image", content)
    spec = one_disk(path, "raw")
    assert told(spec) == []
    (found,) = raw_warnings(spec)
    assert f"begins as {what} does: {cure} only if it is that" in found


def test_a_directory(tmp_path: Path) -> None:
    (found,) = told(one_disk(tmp_path, "raw"))
    assert found == f"disks[0].file: {str(tmp_path)!r} cannot be read: is a directory"


def test_not_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(check_files, "_open_once", refuse)  # root may read everything
    path = raw(tmp_path / "image")
    assert told(one_disk(path, "raw")) == [
        f"disks[0].file: {str(path)!r} cannot be read: permission denied"
    ]


def test_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK)
    path = raw(tmp_path / "image")
    assert told(one_disk(path, "raw")) == [
        f"disks[0].file: {str(path)!r} may not be written (readonly = true)"
    ]
    assert told(one_disk(path, "raw", readonly=True)) == []


def test_a_file_is_no_block_device(tmp_path: Path) -> None:
    path = raw(tmp_path / "image")
    assert told(one_disk(path, "raw", driver="host_device")) == [
        f'disks[0].file: {str(path)!r} is no block device (driver = "file")'
    ]


@pytest.mark.parametrize("driver", ["file", "host_device"])
def test_what_is_no_image_at_all(driver: Any) -> None:
    assert told(one_disk(Path("/dev/null"), "raw", driver=driver)) == [
        "disks[0].file: '/dev/null' is neither a file nor a block device (name an image)"
    ]


def test_missing_base(tmp_path: Path) -> None:
    qcow2(tmp_path / "middle", "absent")
    qcow2(tmp_path / "top", str(tmp_path / "middle"))
    missing, middle = str(tmp_path / "absent"), str(tmp_path / "middle")
    assert told(one_disk(tmp_path / "top")) == [
        f"disks[0].file: the base {missing!r} of {middle!r} does not exist "
        "(put it back, or name another with qemu-img rebase -u)"
    ]


def test_a_loop_of_bases(tmp_path: Path) -> None:
    qcow2(tmp_path / "one", "two")
    qcow2(tmp_path / "two", "one")
    top, again = str(tmp_path / "one"), str(tmp_path / "one")
    assert told(one_disk(tmp_path / "one")) == [
        f"disks[0].file: the bases of {top!r} form a loop at {again!r} "
        f"(name the true base: qemu-img rebase -u -b BASE {str(tmp_path / 'two')!r})"
    ]


def test_a_chain_without_end(tmp_path: Path) -> None:
    qcow2(tmp_path / "0")
    for number in range(1, 1000):
        qcow2(tmp_path / str(number), str(number - 1))
    top = str(tmp_path / "999")
    assert told(one_disk(tmp_path / "999")) == [
        f"disks[0].file: the chain of {top!r} is deeper than 200 images "
        "(shorten it with qemu-img rebase or qemu-img commit)"
    ]


def test_missing_data_file(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "disk", data_file=str(tmp_path / "content"))
    data = str(tmp_path / "content")
    assert told(one_disk(path)) == [
        f"disks[0].file: the data file {data!r} of {str(path)!r} does not exist (put it back)"
    ]
    raw(tmp_path / "content")
    assert told(one_disk(path)) == []


def test_a_base_behind_a_protocol_is_left_to_qemu(tmp_path: Path) -> None:
    assert told(one_disk(qcow2(tmp_path / "top", "nbd://host/disk"))) == []


def test_two_disks_on_one_file(tmp_path: Path) -> None:
    path = raw(tmp_path / "image")
    (tmp_path / "link").symlink_to(path)
    disks = (Disk(path, format="raw"), Disk(tmp_path / "link", format="raw"))
    assert told(MachineSpec(disks=disks)) == [
        f"disks[1].file: {str(tmp_path / 'link')!r} is the image of disks[0] too"
    ]
    readers = tuple(attrs.evolve(disk, readonly=True) for disk in disks)
    assert told(MachineSpec(disks=readers)) == []


@pytest.mark.parametrize("made", [False, True])
def test_a_base_that_a_sibling_writes(tmp_path: Path, made: bool) -> None:
    base = qcow2(tmp_path / "base")
    top = tmp_path / "top"
    if not made:
        qcow2(top, "base")
    overlay = Disk(top, format="qcow2", make=Overlay(base, format="qcow2"))
    spec = MachineSpec(disks=(overlay, Disk(base, format="qcow2")))
    assert told(spec) == [f"disks[0].file: its base {str(base)!r} is written by disks[1]"]


def test_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_files, "image_locked", lambda path, for_writing: for_writing)
    path = qcow2(tmp_path / "image")
    with path.open():
        (problem,) = preflight(one_disk(path))
    assert isinstance(problem.alone, ImageInUse)
    assert f"(pid {os.getpid()}) has it open" in str(problem.alone)
    assert str(problem.fault).startswith(f"disks[0].file: {str(path)!r} is in use: ")
    assert told(one_disk(path, readonly=True)) == []


# --- images to be made


def test_an_existing_target_is_checked_and_not_made(tmp_path: Path) -> None:
    path = raw(tmp_path / "disk")
    assert told(one_disk(path, "raw", make="1GiB")) == []
    assert told(one_disk(path, "qcow2", make="1GiB")) == [
        f'disks[0].format: {str(path)!r} is raw, not qcow2 (format = "raw")'
    ]


def test_missing_directory(tmp_path: Path) -> None:
    folder = tmp_path / "absent"
    assert told(one_disk(folder / "disk", make="1GiB")) == [
        f"disks[0].file: the directory {str(folder)!r} does not exist (mkdir -p {folder})"
    ]


def test_directory_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode == os.X_OK)
    (found,) = told(one_disk(tmp_path / "disk", make="1GiB"))
    assert found == (
        f"disks[0].file: no file can be made in {str(tmp_path)!r}: no permission "
        "(choose another place)"
    )


def test_a_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = raw(tmp_path / "image")
    monkeypatch.setattr(os, "access", lambda path, mode, **_: not mode & os.W_OK)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert told(one_disk(tmp_path / "disk", make="1GiB")) == [
        f"disks[0].file: no file can be made in {str(tmp_path)!r}: its file system is read-only "
        "(choose another place)"
    ]
    assert told(one_disk(path, "raw")) == [
        f"disks[0].file: {str(path)!r} is on a read-only file system (readonly = true)"
    ]


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "dang").symlink_to("nowhere")
    assert told(one_disk(tmp_path / "dang", "raw")) == [
        f"disks[0].file: {str(tmp_path / 'dang')!r} is a link to 'nowhere', which does not exist"
    ]


def test_base_to_be_overlaid(tmp_path: Path) -> None:
    base = tmp_path / "base"
    spec = one_disk(tmp_path / "top", make=Overlay(base, format="qcow2"))
    assert told(spec) == [f"disks[0].make.file: {str(base)!r} does not exist"]
    raw(base)
    assert told(spec) == [f'disks[0].make.format: {str(base)!r} is raw, not qcow2 (format = "raw")']


def test_no_qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (problem,) = preflight(one_disk(tmp_path / "disk", make="1GiB"))
    assert isinstance(problem.alone, BinaryMissing)
    assert str(problem.fault) == (
        "disks[0].make: qemu-img is not on PATH (sudo apt install qemu-utils)"
    )


def test_kernel_initrd_and_firmware(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path / "vmlinuz", tmp_path / "initrd")
    spec = MachineSpec(kernel=kernel, firmware=str(tmp_path / "bios"))
    assert [line.partition(":")[0] for line in told(spec)] == [
        "firmware",
        "kernel.image",
        "kernel.initrd",
    ]


@pytest.mark.parametrize(
    ("backing", "found"),
    [("./a/../base", None), ("other", "'{}/other'"), ("", "none"), ("lost", "'{}/lost'")],
)
def test_an_existing_overlay_of_another_base_is_told(
    tmp_path: Path, backing: str, found: str | None
) -> None:
    (tmp_path / "a").mkdir()
    base = raw(tmp_path / "base")
    raw(tmp_path / "other")
    image = qcow2(tmp_path / "top", backing)
    spec = one_disk(image, make=Overlay(base, format="raw"))
    warning = (
        f"disks[0]: {str(image)!r} exists and is used as it is: its base is "
        f"{(found or '').format(tmp_path)}, not {str(base)!r} as `make` says"
    )
    assert list(base_warnings(spec)) == ([] if found is None else [warning])


def test_an_overlay_yet_to_be_made_has_its_base(tmp_path: Path) -> None:
    base = raw(tmp_path / "base")
    spec = one_disk(tmp_path / "top", make=Overlay(base, format="raw"))
    assert list(base_warnings(spec)) == []


def test_what_a_guest_wrote_on_its_raw_disk_is_not_followed(tmp_path: Path) -> None:
    """The other disk is not its base, whatever its first sector says."""
    other = raw(tmp_path / "other")
    evil = qcow2(tmp_path / "evil", "other", backing_format="raw")
    disks = (Disk(other, format="raw"), Disk(evil, format="raw"))
    assert told(MachineSpec(disks=disks)) == []
    (line,) = told(MachineSpec(disks=(disks[0], Disk(evil, format="qcow2"))))
    assert f"its base {str(other)!r} is written by disks[0]" in line
