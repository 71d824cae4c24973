"""Formats by their first bytes, and where a base is."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpkit.host.headers import Header, backing_path, has_no_data, read_header
from tests.unit.host.images_on_disk import qcow2, raw


@pytest.mark.parametrize(
    ("content", "format"),
    [
        (b"QED\0", "qed"),
        (b"KDMV", "vmdk"),
        (b"# Disk DescriptorFile\nversion=1\n", "vmdk"),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vpc"),
        (b"LUKS\xba\xbe\0\1", "luks"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (bytes(64) + b"\x7f\x10\xda\xbe", "vdi"),
        (b"\xeb\x63\x90".ljust(510, b"\0") + b"\x55\xaa", ""),
        (b"\x1f\x8b".ljust(510, b"\0") + b"\x55\xaa", ""),
        (bytes(512), ""),
    ],
)
def test_formats(tmp_path: Path, content: bytes, format: str) -> None:
    assert read_header(raw(tmp_path / "image", content)) == Header(format)


def test_empty(tmp_path: Path) -> None:
    assert read_header(raw(tmp_path / "image", b"")) == Header("", empty=True)


def test_qcow2_and_its_backing(tmp_path: Path) -> None:
    assert read_header(qcow2(tmp_path / "plain")) == Header("qcow2")
    name = "a,b 'c' \n ü"
    assert read_header(qcow2(tmp_path / "top", name)) == Header("qcow2", name)


@pytest.mark.parametrize("version", [2, 3])
def test_what_else_a_qcow2_says(tmp_path: Path, version: int) -> None:
    found = read_header(
        qcow2(
            tmp_path / "top", "base", backing_format="raw", data_file="x", size=5, version=version
        )
    )
    # Version 2 knows no features, so it has no data file.
    data_file = "x" if version == 3 else ""
    assert found == Header("qcow2", "base", backing_format="raw", data_file=data_file, size=5)


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    assert read_header(qcow2(tmp_path / "top", name)).backing == name


@pytest.mark.parametrize("length", [4, 12, 19, 24])
def test_a_cut_off_qcow2(tmp_path: Path, length: int) -> None:
    path = qcow2(tmp_path / "top", "base")
    os.truncate(path, length)
    assert read_header(path) == Header("qcow2")


@given(content=st.binary(max_size=600))
def test_any_bytes_are_judged(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(b"QFI\xfb" + content)
    header = read_header(path)
    assert header.format == "qcow2"
    assert len(os.fsencode(header.backing)) <= 1023


FIELDS = {4: 4, 8: 8, 16: 4, 20: 4, 24: 8, 72: 8, 100: 4}  # of a qcow2 header, and their sizes
VALUES = st.one_of(
    st.integers(0, 2**64 - 1),
    st.builds(
        lambda power, near: max(0, (1 << power) + near), st.integers(0, 63), st.integers(-9, 9)
    ),
)


@given(
    damage=st.lists(st.tuples(st.sampled_from(sorted(FIELDS)), VALUES), max_size=4),
    noise=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=30),
    version=st.sampled_from([2, 3]),
)
def test_any_damage_has_a_meaning(
    tmp_path_factory: pytest.TempPathFactory,
    damage: list[tuple[int, int]],
    noise: list[tuple[int, int]],
    version: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    qcow2(path, "base", backing_format="raw", data_file="x", version=version)
    content = bytearray(path.read_bytes())
    for at, byte in noise:
        content[at] = byte
    for at, value in damage:
        size = FIELDS[at]
        content[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "big")
    path.write_bytes(content)
    header = read_header(path)
    assert len(os.fsencode(header.backing)) <= 1023


@pytest.mark.parametrize("offset", [1 << 63 | 5, (1 << 63) - 1, 1 << 40, 65536, 65500])
def test_a_name_beyond_the_first_cluster_is_none(tmp_path: Path, offset: int) -> None:
    """QEMU opens no such image."""
    path = qcow2(tmp_path / "top", "base")
    with path.open("r+b") as file:
        file.truncate(1 << 20)
        file.seek(8)
        file.write(struct.pack(">QI", offset, 100))
    assert read_header(path).backing == ""


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="seek"):
        read_header(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("backing", "found"),
    [
        ("base", "/images/base"),
        ("./nbd:x", "/images/nbd:x"),
        ("sub/x:y", "/images/sub/x:y"),
        ("/other/base", "/other/base"),
        ("file:base", "/images/base"),
        ("nbd://host/export", None),
        ('json:{"driver": "file"}', None),
    ],
)
def test_where_the_base_is(backing: str, found: str | None) -> None:
    path = backing_path(Path("/images/top"), backing)
    assert path == (None if found is None else Path(found))


def test_what_was_never_written_to(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    header = bytes(36) + (2).to_bytes(4, "big") + (48).to_bytes(8, "big")
    for table, untouched in ((bytes(16), True), (bytes(15) + b"\1", False)):
        image.write_bytes(header + table)
        assert has_no_data(image) is untouched
    image.write_bytes(b"")
    assert has_no_data(image)
