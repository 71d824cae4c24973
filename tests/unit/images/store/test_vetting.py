"""What is no image that others may be built on is refused, and leaves nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qmpkit.errors import ImageRefused, PullFailed
from qmpkit.images import Store
from qmpkit.process.tools import run
from tests.unit.images.store.server import Server, left

pytestmark = pytest.mark.usefixtures("spawner")

RAW = b"x" * 512 * 300


async def qemu_img(*words: object) -> None:
    done = await run(["qemu-img", *map(str, words)])
    assert done.status.success, done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-b", "/etc/passwd", "-F", "raw", "-u"), "it has a base, '/etc/passwd'"),
        (("-b", "json:{}", "-F", "raw", "-u"), "it has a base, 'json:{}'"),
        (("-b", "nbd://host/x", "-F", "raw", "-u"), "it has a base, 'nbd://host/x'"),
        (("-o", "data_file=DATA,data_file_raw=on"), "it has a data file, '.*DATA'"),
    ],
)
async def test_an_image_that_names_others(
    server: Server, store: Store, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    words = [word.replace("DATA", f"{tmp_path}/DATA") for word in options]
    await qemu_img("create", "-q", "-f", "qcow2", *words, tmp_path / "evil", "1M")
    for what in (server.put("/evil.img", (tmp_path / "evil").read_bytes()), tmp_path / "evil"):
        with pytest.raises(ImageRefused, match=said):
            await store.pull(what)
    assert await store.images() == ()
    assert left(store) == set()


async def test_other_formats(server: Server, store: Store, tmp_path: Path) -> None:
    await qemu_img("create", "-q", "-f", "vmdk", tmp_path / "disk.vmdk", "1M")
    with pytest.raises(ImageRefused, match="it is a vmdk file, and the store takes qcow2 and raw"):
        await store.pull(tmp_path / "disk.vmdk")
    with pytest.raises(ImageRefused, match="it is raw, not qcow2 as stated"):
        await store.pull(server.put("/disk.img", RAW), format="qcow2")
    with pytest.raises(ImageRefused, match="it is empty"):
        await store.pull(server.put("/empty.img", b""))


async def test_what_is_no_file(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # whoever opened it would wait for ever
    for what in (tmp_path / "fifo", tmp_path, Path("/dev/null")):
        with pytest.raises(ImageRefused, match="this is neither a file nor a disk"):
            await store.pull(what, name="x")
    with pytest.raises(PullFailed, match="No such file or directory"):
        await store.pull(tmp_path / "none")
    assert left(store) == set()


async def test_a_damaged_header(server: Server, store: Store, qcow2: bytes) -> None:
    damaged = qcow2[:20] + b"\xff" * 40 + qcow2[60:]
    with pytest.raises(ImageRefused, match="it is damaged"):
        await store.pull(server.put("/disk.img", damaged))
    assert await store.images() == ()


async def test_an_image_that_was_cut_off(server: Server, store: Store, tmp_path: Path) -> None:
    """Where nobody tells its length, its head looks well."""
    (tmp_path / "raw").write_bytes(os.urandom(1 << 20))
    await qemu_img("convert", "-O", "qcow2", tmp_path / "raw", tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    half = server.put("/half.img", whole[: len(whole) // 2], length=False)
    with pytest.raises(ImageRefused, match=r"it is damaged: .* corruptions and .* errors"):
        await store.pull(half)
    assert (await store.pull(server.put("/whole.img", whole, length=False))).size == len(whole)
