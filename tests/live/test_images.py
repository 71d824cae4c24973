"""Images by the real qemu-img of each version: what is told is what qemu-img itself finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpkit import images
from qmpkit.errors import ImageFailed
from qmpkit.images.options import Preallocation
from qmpkit.process.spawner import shared_spawner
from tests.live.image_tools import FORMATS, MIB, assert_same, left, said, written
from tests.unit.host.images_on_disk import qcow2

pytestmark = pytest.mark.live


# --- formats, with and without O_TMPFILE


async def test_every_format(qemu_img: str, tmp_path: Path, draft: str) -> None:
    raw = written(tmp_path / "raw", 2 * MIB)
    async with shared_spawner():
        for format in FORMATS:
            target = tmp_path / f"a,b:c.{format}"
            made = await images.convert(raw, target, source_format="raw", format=format)
            assert left(tmp_path) == {"raw", target.name}
            assert made.stat().st_mode & 0o777 == 0o644
            found = await images.info(made)
            assert found.format == format
            assert found.corrupt is (False if format == "qcow2" else None)
            # A guest's CHS geometry rounds what vpc holds.
            back = await images.convert(made, tmp_path / "b", source_format=format, format="raw")
            assert back.read_bytes()[: 2 * MIB] == raw.read_bytes()
            made.unlink()
            back.unlink()


async def test_a_vmdk_names_itself(qemu_img: str, tmp_path: Path) -> None:
    """VMware does not open one that names another file."""
    made = await images.create(tmp_path / "disk.vmdk", "1MiB", "vmdk")
    assert b'SPARSE "disk.vmdk"' in made.read_bytes()


async def test_a_base_of_any_format(qemu_img: str, tmp_path: Path, draft: str) -> None:
    raw = written(tmp_path / "raw", 2 * MIB)
    async with shared_spawner():
        for format in FORMATS:
            base = tmp_path / f"base.{format}"
            await images.convert(raw, base, source_format="raw", format=format)
            top = await images.overlay(tmp_path / f"{format}.top", base, format)
            await assert_same(top, "qcow2", base, format, qemu_img)
            found = await images.chain(top)
            assert [image.format for image in found] == ["qcow2", format]


async def test_the_size_of_a_base_in_vpc(qemu_img: str, tmp_path: Path) -> None:
    base = await images.create(tmp_path / "base", 1_000_000, "vpc")
    top = await images.overlay(tmp_path / "top", base, "vpc")
    sizes = [image.virtual_size for image in await images.chain(top)]
    assert sizes[0] == sizes[1]


async def test_preallocation(qemu_img: str, tmp_path: Path) -> None:
    modes: tuple[Preallocation, ...] = ("metadata", "falloc", "full")
    for mode in modes:
        made = await images.create(
            tmp_path / mode, 4 * MIB, "qcow2", options=images.Options(preallocation=mode)
        )
        assert ((await images.info(made)).disk_size >= 4 * MIB) is (mode != "metadata")


# --- info


async def test_snapshots_and_bitmaps(qemu_img: str, tmp_path: Path) -> None:
    path = await images.create(tmp_path / "disk", "1MiB", "qcow2")
    await said(qemu_img, "snapshot", "-c", "before the upgrade", str(path))
    await said(qemu_img, "bitmap", "--add", "-g", "4096", "-f", "qcow2", str(path), "b0")
    await said(qemu_img, "bitmap", "--add", "--disable", "-f", "qcow2", str(path), "b1")
    found = await images.info(path)
    (snapshot,) = found.snapshots
    assert (snapshot.name, snapshot.vm_size) == ("before the upgrade", 0)
    assert abs(snapshot.taken - path.stat().st_mtime) < 60
    assert [(one.name, one.granularity, one.recording) for one in found.bitmaps] == [
        ("b0", 4096, True),
        ("b1", 65536, False),
    ]
    assert not any(one.broken for one in found.bitmaps)
    assert found.raw["virtual-size"] == found.virtual_size == MIB
    assert not found.in_use


async def test_a_data_file(qemu_img: str, tmp_path: Path) -> None:
    path, data = tmp_path / "disk", tmp_path / "content"
    options = f"data_file={data},data_file_raw=on"
    await said(qemu_img, "create", "-q", "-f", "qcow2", "-o", options, str(path), "1M")
    assert (await images.info(path)).data_file == data
    data.unlink()
    with pytest.raises(ImageFailed, match=r"the data file .* does not exist\. Cure: put it back"):
        await images.chain(path)


async def test_an_unrecorded_format_is_said(qemu_img: str, tmp_path: Path) -> None:
    await images.create(tmp_path / "base", "1MiB", "qcow2")
    top = qcow2(tmp_path / "top", "base")
    real = await images.overlay(tmp_path / "real", tmp_path / "base", "qcow2")
    # The extension's kind, overwritten: what old versions of qemu-img made.
    content = bytearray(real.read_bytes())
    at = content.index(bytes.fromhex("e2792aca"))
    content[at : at + 4] = b"\1\1\1\1"
    top.write_bytes(content)
    found = await images.chain(top)
    assert found[0].backing_format is None
    assert [image.format for image in found] == ["qcow2", "qcow2"]


async def test_an_encrypted_image(qemu_img: str, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    secret = ["--object", "secret,id=s,data=abc"]
    options = "encrypt.format=aes,encrypt.key-secret=s"
    await said(qemu_img, "create", "-q", *secret, "-f", "qcow2", "-o", options, str(path), "1M")
    assert (await images.info(path)).encrypted


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b\x08" + bytes(600), r"it is compressed \(gzip\).*Cure: unpack it"),
        (b"QFI\xfb" + b"\xff" * 600, "Unsupported qcow2 version"),
        (b"QFI\xfb\0\0\0\3", "Could not open"),
    ],
)
async def test_what_is_no_image(qemu_img: str, tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "disk").write_bytes(content)
    with pytest.raises(ImageFailed, match=f"cannot read .*{words}"):
        await images.info(tmp_path / "disk")


async def test_a_name_that_no_file_can_have(qemu_img: str, tmp_path: Path) -> None:
    for ask in (
        lambda: images.info("a\0b"),
        lambda: images.create("a\0b", "1MiB", "raw"),
        lambda: images.create(tmp_path / ("n" * 256), "1MiB", "raw"),
    ):
        with pytest.raises(ImageFailed, match=r"cannot hold a NUL|File name too long"):
            await ask()
    assert left(tmp_path) == set()


@pytest.mark.parametrize("name", ["nbd://127.0.0.1:1/x", 'json:{"driver": "null-co"}'])
async def test_a_base_that_is_no_plain_file(qemu_img: str, tmp_path: Path, name: str) -> None:
    """It is shown, and not opened."""
    top = tmp_path / "top"
    words = ["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", name, str(top), "1M"]
    await said(qemu_img, *words)
    (found,) = await images.chain(top)
    assert (found.backing, found.backing_format, found.backing_path) == (name, "raw", None)


async def test_a_stated_format_is_not_questioned(qemu_img: str, tmp_path: Path) -> None:
    """A raw disk whose guest wrote a qcow2 header on it."""
    path = qcow2(tmp_path / "disk", "/etc/shadow")
    found = await images.info(path, format="raw")
    assert (found.format, found.backing) == ("raw", None)
    assert await images.chain(path, format="raw") == (found,)
