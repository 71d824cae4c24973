"""Images whose content is in a file of its own."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import qmpkit
from qmpkit import Disk, MachineSpec, images
from qmpkit.errors import ImageFailed, SpecInvalid
from qmpkit.images import Options
from qmpkit.images.drafts import Draft, Placed
from qmpkit.process.spawner import shared_spawner
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks
from tests.live.image_tools import MIB, assert_same, left, said, wrote
from tests.sizes import DATA_CANCELS_EVERY, NEWEST, OLDEST

pytestmark = pytest.mark.live


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "a,b"
    made.mkdir()
    return made


async def test_a_life(qemu_img: str, folder: Path, tmp_path: Path, draft: str) -> None:
    data = folder / "content,1=x"
    async with shared_spawner():
        disk = await images.create(
            folder / "disk",
            "1MiB",
            "qcow2",
            options=Options(data_file=data, data_file_raw=True),
        )
        assert left(folder) == {"disk", data.name}
        found = await images.info(disk)
        assert (found.data_file, found.virtual_size) == (data, MIB)
        assert (await images.check(disk, "qcow2")).ok
        await wrote(qemu_img, disk, 4096, 7)
        assert data.read_bytes()[4096:8192] == b"\7" * 4096
        grown = await images.resize(disk, "2MiB", "qcow2")
        assert (grown, data.stat().st_size) == (2 * MIB, 2 * MIB)
        copy = await images.convert(disk, folder / "copy", source_format="qcow2", format="qcow2")
        assert (await images.info(copy)).data_file is None
        await assert_same(disk, "qcow2", copy, "qcow2", qemu_img)
        second = tmp_path / "second"
        other = await images.convert(
            copy,
            folder / "other",
            source_format="qcow2",
            format="qcow2",
            options=Options(data_file=second, data_file_raw=True),
            allowed=[tmp_path],
        )
        await assert_same(other, "qcow2", second, "raw", qemu_img)
        moved = second.rename(tmp_path / "moved")
        with pytest.raises(ImageFailed, match=r"second' of .*other' does not exist"):
            await images.check(other, "qcow2")
        found = await images.amend(other, data_file=moved)
        assert found.data_file == moved
        await assert_same(other, "qcow2", copy, "qcow2", qemu_img)


@pytest.mark.qemus(*NEWEST)
async def test_a_machine_on_one(qemu: str, qemu_img: str, tmp_path: Path) -> None:
    options = Options(data_file=tmp_path / "content")
    disk = await images.create(tmp_path / "disk", "1MiB", "qcow2", options=options)
    spec = MachineSpec(disks=(Disk(disk, format="qcow2"),), qemu=qemu)
    async with qmpkit.running(spec, paused=True) as vm:
        nodes = {node["file"] for node in await vm.execute("query-named-block-nodes")}
    assert str(tmp_path / "content") in nodes


@pytest.mark.qemus(*OLDEST)
async def test_what_is_refused(qemu_img: str, folder: Path, tmp_path: Path) -> None:
    (folder / "taken").write_text("what is here stays")
    source = folder / "source"
    source.write_bytes(bytes(MIB))
    for data, allowed, why in (
        (folder / "taken", None, "make the data file .*taken'.* it exists already"),
        (folder / "new", [tmp_path / "x"], "is outside the allowed folders"),
        (folder / "none" / "new", None, "there is no directory"),
        (folder / "disk", None, "it is the image itself"),
    ):
        options = Options(data_file=data)
        with pytest.raises(ImageFailed, match=why):
            await images.create(folder / "disk", "1MiB", "qcow2", options=options, allowed=allowed)
    with pytest.raises(SpecInvalid, match="compress: a data file holds nothing compressed"):
        await images.convert(
            source,
            folder / "disk",
            source_format="raw",
            format="qcow2",
            compress=True,
            options=Options(data_file=folder / "new"),
        )
    for format, how, fault in (
        ("raw", {"data_file": "x"}, "data_file: raw images have no such option"),
        ("qcow2", {"data_file_raw": True}, "data_file_raw: there is no data file"),
    ):
        with pytest.raises(SpecInvalid, match=fault):
            await images.create(folder / "disk", "1MiB", format, options=Options(**how))
    with pytest.raises(SpecInvalid, match="data_file: an overlay's content is in itself"):
        await images.overlay(
            folder / "disk", source, "raw", options=Options(data_file=folder / "new")
        )
    with pytest.raises(ImageFailed, match="its content is in itself"):
        await images.amend(await images.create(folder / "plain", "1MiB", "qcow2"), data_file=source)
    assert left(folder) == {"taken", "source", "plain"}
    assert (folder / "taken").read_text() == "what is here stays"


@pytest.mark.qemus(*NEWEST)
async def test_one_made_by_qemu_img_with_a_relative_name(
    qemu_img: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU would look for it in the directory that it is started in."""
    monkeypatch.chdir(folder)
    await said(qemu_img, "create", "-f", "qcow2", "-o", "data_file=content", "disk", "1M")
    await wrote(qemu_img, Path("disk"), 0, 5)
    monkeypatch.chdir("/")
    disk = folder / "disk"
    assert (await images.info(disk)).data_file == Path("content")
    with pytest.raises(ImageFailed, match=r"no absolute path.*amend .*--data-file FILE"):
        await images.check(disk, "qcow2")
    odd = (folder / "content").rename(folder / os.fsdecode(b"content\xff"))
    await images.amend(disk, data_file=odd, refcount_bits=32)
    assert (await images.check(disk, "qcow2")).ok
    flat = await images.convert(disk, folder / "flat", source_format="qcow2", format="raw")
    assert flat.read_bytes()[:4096] == b"\5" * 4096


@pytest.mark.qemus(*NEWEST)
async def test_where_it_is_can_be_said_without_its_base(qemu_img: str, folder: Path) -> None:
    content = folder / "content"
    words = ["-F", "raw", "-b", "gone", "-o", f"data_file={str(content).replace(',', ',,')}"]
    top = folder / "top.qcow2"
    await said(qemu_img, "create", "-q", "-u", "-f", "qcow2", *words, str(top), "1M")
    moved = content.rename(folder / "moved")
    found = await images.amend(top, data_file=moved)
    assert (found.data_file, found.backing, found.backing_format) == (moved, "gone", "raw")
    (folder / "gone").write_bytes(bytes(MIB))
    assert (await images.check(top, "qcow2")).ok
    damaged = bytearray(top.read_bytes())
    damaged[7] = 9  # its version
    top.write_bytes(damaged)
    with pytest.raises(ImageFailed, match=r"Could not open '.*top\.qcow2': Unsupported qcow2"):
        await images.amend(top, data_file=moved)


@pytest.mark.bound(120)
@pytest.mark.qemus(*NEWEST)
async def test_cancelled_everywhere(qemu_img: str, folder: Path) -> None:
    source = folder / "source"
    source.write_bytes(random.Random(1).randbytes(MIB))
    options = Options(data_file=folder / "content")

    def well() -> None:
        assert left(folder) in ({"source"}, {"source", "disk", "content"})
        for name in ("disk", "content"):
            (folder / name).unlink(missing_ok=True)

    async with shared_spawner(), leaks():
        struck = await cancel_at_every_checkpoint(
            lambda: images.convert(
                source,
                folder / "disk",
                source_format="raw",
                format="qcow2",
                options=options,
            ),
            after=well,
            every=DATA_CANCELS_EVERY,
        )
    assert struck > 3


@pytest.mark.qemus(*NEWEST)
async def test_an_image_that_does_not_follow(
    qemu_img: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody takes the image's name after its data file has come into its place."""
    placed = Draft.placed

    def taken(draft: Draft) -> Placed:
        (folder / "disk").write_text("another's")
        return placed(draft)

    monkeypatch.setattr(Draft, "placed", taken)
    with pytest.raises(ImageFailed, match="it exists already"):
        await images.create(
            folder / "disk", "1MiB", "qcow2", options=Options(data_file=folder / "content")
        )
    assert left(folder) == {"disk"}
    assert (folder / "disk").read_text() == "another's"
