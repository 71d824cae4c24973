"""Chains of images by their headers: followed to the end, or it is said what is wrong where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.host.chain import MAX_CHAIN, Broken, walk_chain
from qmpkit.host.headers import Header, read_header
from tests.unit.host.images_on_disk import qcow2, raw


def names(image: Path, format: str | None = None) -> list[str]:
    found = walk_chain(image, format)
    assert found.broken is None
    return [layer.path.name for layer in found.layers]


def what_is_broken(image: Path) -> Broken:
    broken = walk_chain(image).broken
    assert broken is not None
    return broken


def tower(folder: Path, depth: int) -> Path:
    """A chain of so many images; the top."""
    image = qcow2(folder / "0")
    for number in range(1, depth):
        image = qcow2(folder / str(number), str(number - 1), backing_format="qcow2")
    return image


def test_from_the_top_down(tmp_path: Path) -> None:
    raw(tmp_path / "base")
    (tmp_path / "sub").mkdir()
    qcow2(tmp_path / "sub" / "a:b", "../base", backing_format="raw")
    qcow2(tmp_path / "top", "./sub/a:b", backing_format="qcow2")
    found = walk_chain(tmp_path / "top")
    assert [layer.path for layer in found.layers] == [
        tmp_path / "top",
        tmp_path / "sub" / "a:b",
        tmp_path / "sub" / "../base",
    ]
    assert [layer.format for layer in found.layers] == ["qcow2", "qcow2", "raw"]


def test_a_raw_image_has_no_base_whatever_its_guest_wrote(tmp_path: Path) -> None:
    qcow2(tmp_path / "base", "/etc/shadow")
    qcow2(tmp_path / "top", "base", backing_format="raw")
    assert names(tmp_path / "top") == ["top", "base"]
    assert names(tmp_path / "base", "raw") == ["base"]


def test_a_format_that_is_not_recorded_is_that_of_the_header(tmp_path: Path) -> None:
    raw(tmp_path / "0")
    qcow2(tmp_path / "1", "0")
    qcow2(tmp_path / "2", "1")
    assert [layer.format for layer in walk_chain(tmp_path / "2").layers] == [
        "qcow2",
        "qcow2",
        "raw",
    ]


@pytest.mark.parametrize("name", ["nbd://host/export", 'json:{"driver": "file"}', "fat:/etc/apt"])
def test_a_base_that_is_no_plain_file(tmp_path: Path, name: str) -> None:
    top = qcow2(tmp_path / "top", name)
    assert names(top) == ["top"]
    outside = walk_chain(top).outside
    assert outside is not None
    assert outside.why == f"the base {name!r} of {str(top)!r} is no plain file"
    assert f"rebase -u -F FORMAT -b BASE {str(top)!r}" in outside.cure


def test_a_data_file_that_is_no_plain_file(tmp_path: Path) -> None:
    middle = qcow2(tmp_path / "middle", "base", data_file="nbd://host/export")
    raw(tmp_path / "base")
    found = walk_chain(qcow2(tmp_path / "top", "middle"))
    assert found.outside is not None
    assert found.outside.why.startswith(f"the data file 'nbd://host/export' of {str(middle)!r} is ")


def test_a_plain_file_by_its_protocol(tmp_path: Path) -> None:
    raw(tmp_path / "base")
    top = qcow2(tmp_path / "top", "file:base", backing_format="raw")
    assert names(top) == ["top", "base"]
    assert walk_chain(top).outside is None


def test_missing_base(tmp_path: Path) -> None:
    qcow2(tmp_path / "middle", "absent")
    broken = what_is_broken(qcow2(tmp_path / "top", "middle"))
    absent, middle = str(tmp_path / "absent"), str(tmp_path / "middle")
    assert broken.why == f"the base {absent!r} of {middle!r} does not exist"
    assert broken.path == tmp_path / "middle"
    assert "rebase" in broken.cure


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_unreadable_base(tmp_path: Path, kind: str) -> None:
    (tmp_path / "base").mkdir() if kind == "directory" else os.mkfifo(tmp_path / "base")
    assert "cannot be read: " in what_is_broken(qcow2(tmp_path / "top", "base")).why


def test_a_device_that_is_no_disk_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening alone may do something: /dev/watchdog resets the host."""
    read: list[Path] = []

    def noted(path: Path, stated: str | None) -> Header:
        read.append(path)
        return read_header(path, stated)

    monkeypatch.setattr("qmpkit.host.chain.read_header", noted)
    top = qcow2(tmp_path / "top", "/dev/null", backing_format="raw")
    assert what_is_broken(top).why.endswith("cannot be read: neither a file nor a block device")
    assert read == [top]


def test_missing_image(tmp_path: Path) -> None:
    assert what_is_broken(tmp_path / "absent").why == "no such file or directory"


@pytest.mark.parametrize("link", ["name", "symlink", "hard link", "itself"])
def test_a_loop_is_seen_under_any_name(tmp_path: Path, link: str) -> None:
    one = qcow2(tmp_path / "one", "one" if link == "itself" else "two")
    qcow2(tmp_path / "two", "one" if link == "name" else "three")
    if link == "symlink":
        (tmp_path / "three").symlink_to("one")
    elif link == "hard link":
        (tmp_path / "three").hardlink_to(one)
    broken = what_is_broken(one)
    assert f"the bases of {str(one)!r} form a loop at " in broken.why
    assert str(broken.path) in broken.cure


def test_the_deepest(tmp_path: Path) -> None:
    top = tower(tmp_path, MAX_CHAIN)
    assert len(names(top)) == MAX_CHAIN


def test_too_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path, stated: str | None) -> Header:
        read.append(path)
        return read_header(path, stated)

    monkeypatch.setattr("qmpkit.host.chain.read_header", counted)
    top = tower(tmp_path, 1000)
    assert what_is_broken(top).why == f"the chain of {str(top)!r} is deeper than 200 images"
    assert len(read) <= MAX_CHAIN + 1


def test_data_file(tmp_path: Path) -> None:
    top = qcow2(tmp_path / "top", data_file=str(tmp_path / "content"))
    data = str(tmp_path / "content")
    broken = what_is_broken(top)
    assert broken.why == f"the data file {data!r} of {str(top)!r} does not exist"
    raw(tmp_path / "content")
    assert names(top) == ["top"]


@given(content=st.binary(max_size=1500))
def test_any_bytes_have_an_end(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any chain"
    path.write_bytes(b"QFI\xfb" + content)
    found = walk_chain(path)
    assert found.layers[0].path == path


def test_a_name_with_a_nul_ends_there(tmp_path: Path) -> None:
    raw(tmp_path / "base")
    assert names(qcow2(tmp_path / "top", "base\0/../x", backing_format="raw")) == ["top", "base"]
    found = walk_chain(qcow2(tmp_path / "top", data_file=f"{tmp_path}/a\0b"))
    assert found.broken is not None
    assert found.broken.why.startswith(f"the data file {str(tmp_path / 'a')!r} of ")


@pytest.mark.parametrize("name", ["content", "./content", "../content", "file:content"])
def test_a_data_file_without_an_absolute_path(tmp_path: Path, name: str) -> None:
    """QEMU counts it from its own working directory, not from where the image is."""
    raw(tmp_path / "content")
    top = qcow2(tmp_path / "top", data_file=name)
    broken = what_is_broken(top)
    assert broken.why.startswith(f"the data file {name!r} of {str(top)!r} has no absolute path")
    assert broken.cure.endswith("--data-file FILE")
    assert walk_chain(top, "qcow2", [tmp_path]).broken == broken


def test_a_data_file_that_holds_no_content(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for data in ("/dev/zero", str(tmp_path), str(tmp_path / "fifo")):
        broken = what_is_broken(qcow2(tmp_path / "top", data_file=data))
        assert broken.why.endswith("is neither a file nor a disk")
