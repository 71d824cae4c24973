"""The first look at an image: what is one, and its first sectors through any format."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from qmpkit.errors import ImageFailed, SpecInvalid
from qmpkit.images.boot import LOOK_AT, BootSigns
from qmpkit.images.look import first_bytes, look_at
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.guests.boot_sector import boot_disk
from qmpkit.testing.leaks import leaks

FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc", "qed")


def image(path: Path, format: str) -> Path:
    """The boot sector's disk in *format*."""
    raw = path.with_name("plain")
    raw.write_bytes(boot_disk())
    qemu_img("convert", "-f", "raw", "-O", format, str(raw), str(path))
    return path


def qemu_img(*words: str) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True, timeout=20)


@pytest.mark.parametrize("format", FORMATS)
async def test_every_format_shows_what_a_guest_would_see(format: str, tmp_path: Path) -> None:
    path = image(tmp_path / f"a disk, with: odd name.{format}", format)
    before = path.read_bytes()
    looked = await look_at(path)
    assert (looked.path, looked.format, looked.is_cd) == (path, format, False)
    assert looked.boot == BootSigns(bios=True)
    assert await first_bytes(path, format) == boot_disk()[:LOOK_AT]
    assert path.read_bytes() == before


async def test_an_overlay_shows_its_base(tmp_path: Path) -> None:
    image(tmp_path / "base", "qcow2")
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", "base", str(top))
    assert (await look_at(top)).boot == BootSigns(bios=True)


async def test_a_disk_of_one_sector(tmp_path: Path) -> None:
    path = tmp_path / "small"
    qemu_img("create", "-f", "qcow2", str(path), "512")
    assert await first_bytes(path, "qcow2") == bytes(512)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("none.qcow2", None, "there is no such file (did you mean 'nine.qcow2'?)"),
        ("folder", "dir", "this is a directory, not a disk image"),
        ("empty.img", b"", "the file is empty, not a disk image"),
        ("a.qcow2.xz", b"\xfd7zXZ\0" + bytes(64), "compressed (xz) (unxz --keep a.qcow2.xz)"),
        ("a.zip", b"PK\3\4" + bytes(64), "the image is compressed (zip) (unzip a.zip)"),
        ("pipe", "fifo", "this is neither a file nor a disk"),
    ],
)
async def test_what_is_no_image(
    name: str, content: bytes | str | None, why: str, tmp_path: Path
) -> None:
    (tmp_path / "nine.qcow2").touch()
    path = tmp_path / name
    if content == "dir":
        path.mkdir()
    elif content == "fifo":
        os.mkfifo(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(SpecInvalid) as caught:
        await look_at(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert why in str(caught.value)


async def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "dang").symlink_to("nowhere")
    with pytest.raises(SpecInvalid) as caught:
        await look_at(tmp_path / "dang")
    assert str(caught.value) == (
        f"{tmp_path / 'dang'}: this is a link to 'nowhere', which does not exist"
    )


async def test_an_encrypted_image(tmp_path: Path) -> None:
    path = tmp_path / "secret.qcow2"
    # The old way: LUKS would take 2 s to strengthen the key.
    secret = ("--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s")
    qemu_img("create", *secret, "-f", "qcow2", str(path), "1M")
    with pytest.raises(SpecInvalid, match="is encrypted"):
        await look_at(path)


async def test_qemu_img_disagrees(tmp_path: Path) -> None:
    path = image(tmp_path / "a.qcow2", "qcow2")
    with pytest.raises(ImageFailed, match=r"cannot read '.*a\.qcow2'"):
        await look_at(path, format="vmdk")


async def test_damage_is_told_not_passed_over(tmp_path: Path) -> None:
    path = image(tmp_path / "a.qcow2", "qcow2")
    with path.open("r+b") as file:
        file.seek(4)
        file.write(b"\xff\xff\xff\xff")  # the version
    with pytest.raises(ImageFailed, match=r"a\.qcow2"):
        await look_at(path)


async def test_cancelled_at_every_checkpoint_it_leaves_nothing(tmp_path: Path) -> None:
    path = image(tmp_path / "a.qcow2", "qcow2")

    async def look() -> None:
        async with leaks():
            await look_at(path)

    assert await cancel_at_every_checkpoint(look) > 3
