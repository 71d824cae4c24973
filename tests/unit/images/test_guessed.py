"""Whose word is taken for an image's format."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit.errors import ImageFailed
from qmpkit.host.headers import read_header
from qmpkit.images.guessed import taken_format
from qmpkit.images.in_use import sound_chain
from qmpkit.images.look import look_at, usable_format
from qmpkit.images.tool import Asked
from tests.unit.host.images_on_disk import qcow2, raw


def taken(path: Path) -> str:
    return taken_format(Asked("read", path), read_header(path))


@pytest.mark.parametrize("name", ["a.qcow2", "A.QCOW2", "a.qcow", "a b.img.Qcow2"])
@pytest.mark.parametrize("more", [{"backing": "/etc/shadow"}, {"data_file": "/etc/shadow"}])
def test_who_says_qcow2_in_its_name(tmp_path: Path, name: str, more: dict[str, str]) -> None:
    assert taken(qcow2(tmp_path / name, **more)) == "qcow2"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.raw", "a.img", "qcow2", "a.qcow2.bak"])
def test_who_does_not(tmp_path: Path, name: str) -> None:
    path = qcow2(tmp_path / name, "/etc/shadow")
    with pytest.raises(ImageFailed) as caught:
        taken(path)
    assert str(caught.value) == (
        f"cannot read {str(path)!r}: its header is that of a qcow2 image with the base "
        "'/etc/shadow', and its name does not end in .qcow2. Cure: state its format: raw if its "
        "guest may have written that header, qcow2 if you made this image"
    )
    with pytest.raises(ImageFailed, match="with its content in '/etc/shadow'"):
        taken(qcow2(path, data_file="/etc/shadow"))
    assert taken(qcow2(path)) == "qcow2"


@pytest.mark.parametrize("content", [b"# Disk DescriptorFile\nRW 1 FLAT /etc/shadow", b"QED\0"])
def test_others_that_may_name_files(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ImageFailed, match="which may name other files"):
        taken(raw(tmp_path / "a.raw", content))
    format = read_header(tmp_path / "a.raw").format
    assert taken(raw(tmp_path / f"a.{format}", content)) == format


def test_what_cannot_name_any_is_taken(tmp_path: Path) -> None:
    assert taken(raw(tmp_path / "a.img")) == "raw"
    assert taken(raw(tmp_path / "a.img", b"vhdxfile")) == "vhdx"


def test_as_stated(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "a.raw", "/etc/shadow")
    assert usable_format(path, "raw") == "raw"
    assert usable_format(path, "qcow2") == "qcow2"
    with pytest.raises(ImageFailed, match="state its format with --source-format: raw if"):
        usable_format(path, None, option="--source-format")


async def test_a_machine_is_not_made_of_it(tmp_path: Path) -> None:
    qcow2(tmp_path / "secret")
    path = qcow2(tmp_path / "a.raw", "secret", backing_format="raw", size=4096)
    with pytest.raises(ImageFailed, match="with the base 'secret'"):
        await look_at(path)
    assert (await look_at(path, format="raw")).format == "raw"


def test_a_base_whose_format_nobody_recorded(tmp_path: Path) -> None:
    """QEMU would believe its header."""
    raw(tmp_path / "secret")
    base = qcow2(tmp_path / "base.raw", "secret")
    top = qcow2(tmp_path / "top.qcow2", "base.raw")
    with pytest.raises(ImageFailed) as caught:
        sound_chain(Asked("convert", top), "qcow2")
    assert str(caught.value) == (
        f"cannot convert {str(top)!r}: {str(top)!r} does not record the format of its base "
        f"{str(base)!r}, whose header is that of a qcow2 image with the base 'secret'. Cure: "
        f"record it: qemu-img rebase -u -b 'base.raw' {str(top)!r} -F raw if its guest may have "
        "written that header, qcow2 if you made that image"
    )
    for format in ("raw", "qcow2"):
        qcow2(top, "base.raw", backing_format=format)
        assert sound_chain(Asked("convert", top), "qcow2").broken is None
    base.rename(tmp_path / "base.qcow2")
    assert len(sound_chain(Asked("x", qcow2(top, "base.qcow2")), "qcow2").layers) == 3
