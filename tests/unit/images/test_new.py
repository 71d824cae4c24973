"""New images by the real qemu-img: whole or not at all, under any name."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import trio

from qmpkit.errors import BinaryMissing, ImageFailed, ImageInUse
from qmpkit.host.headers import backing_path, read_header
from qmpkit.images import convert, create, drafts, overlay
from qmpkit.images.drafts import new_image
from qmpkit.process.tools import run

NAMES = [
    "plain.qcow2",
    "a,b.qcow2",
    "a,,b=c.qcow2",
    'it\'s "quoted".qcow2',
    "with space .qcow2",
    "nbd:host.qcow2",
    "json:{}.qcow2",
    "-o.qcow2",
    "two\nlines.qcow2",
    "ünï.qcow2",
    "n" * 250,
]


def no_tmpfile(folder: Path, child_fd: int) -> NoReturn:
    """What a file system without O_TMPFILE answers."""
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def left(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def touch(draft: drafts.Draft) -> None:
    Path(draft.path).touch()


async def compare(one: Path, other: Path) -> None:
    """Both read the same through qemu-img, backing chain and all."""
    done = await run(["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(one), str(other)])
    assert done.status.success, done.out + done.err


@pytest.mark.parametrize("name", NAMES)
async def test_any_name(tmp_path: Path, name: str) -> None:
    made = await create(tmp_path / name, "1MiB", "qcow2")
    assert made == tmp_path / name
    assert read_header(made).format == "qcow2"
    top = tmp_path / "top"
    top.mkdir()
    over = await overlay(top / name, made, "qcow2")
    assert read_header(over).backing == str(made)
    assert left(top) == [name]
    await compare(over, made)


@pytest.mark.parametrize("name", NAMES[:-1])
async def test_a_base_beside_is_recorded_by_its_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "before"
    folder.mkdir()
    base = await create(folder / name, 1 << 20, "qcow2")
    await overlay(folder / "top", base, "qcow2")
    folder = folder.rename(tmp_path / "after")
    header = read_header(folder / "top")
    assert header.backing == f"./{name}"
    assert backing_path(folder / "top", header.backing) == folder / name
    await compare(folder / "top", folder / name)


async def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert await create("base.raw", 4096, "raw") == tmp_path / "base.raw"
    assert (tmp_path / "base.raw").stat().st_size == 4096
    await overlay("top", "base.raw", "raw")
    assert read_header("top").backing == "./base.raw"


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
async def test_never_over_what_exists(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "disk"
    if kind == "file":
        target.write_text("precious")
    elif kind == "directory":
        target.mkdir()
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ImageFailed) as caught:
        await create(target, "1MiB", "qcow2")
    assert str(caught.value) == (
        f"cannot create {str(target)!r}: it exists already. "
        "Cure: choose another name, or remove it first"
    )
    assert left(tmp_path) == ["disk"]
    if kind == "file":
        assert target.read_text() == "precious"


async def test_of_many_at_once_one_wins(tmp_path: Path) -> None:
    outcomes: list[str] = []

    async def attempt(size: int) -> None:
        try:
            await create(tmp_path / "disk", size, "raw")
            outcomes.append(f"made {size}")
        except ImageFailed as error:
            assert error.stderr == "it exists already"
            outcomes.append("refused")

    async with trio.open_nursery() as nursery:
        for number in range(1, 6):
            nursery.start_soon(attempt, number * 512)
    (winner,) = (outcome for outcome in outcomes if outcome != "refused")
    assert winner == f"made {(tmp_path / 'disk').stat().st_size}"
    assert left(tmp_path) == ["disk"]


async def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "_Unnamed", no_tmpfile)  # as FAT, which has neither

    def refuse(*args: object, **more: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    await create(tmp_path / "disk", 4096, "raw")
    assert left(tmp_path) == ["disk"]
    assert (tmp_path / "disk").stat().st_size == 4096


async def test_another_failing_link_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ImageFailed, match="No space left on device"):
        await create(tmp_path / "disk", 4096, "raw")
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("size", "format", "words"),
    [("1MiB", "nonsense", "Unknown file format"), (1 << 63, "qcow2", "Invalid image size")],
)
async def test_what_qemu_img_says_is_told(
    tmp_path: Path, size: str | int, format: str, words: str
) -> None:
    with pytest.raises(ImageFailed) as caught:
        await create(tmp_path / "disk", size, format)
    assert words in caught.value.stderr
    assert left(tmp_path) == []


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[Path]:
    """A directory that this user may not enter."""
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "base").write_bytes(bytes(4096))
    closed.chmod(0)
    if os.geteuid() == 0:  # who may enter any
        os.seteuid(65534)
        yield closed
        os.seteuid(0)
    else:
        yield closed
    closed.chmod(0o700)


@pytest.mark.parametrize("name", ["disk", "sub/disk"])
async def test_without_permission(nobody: Path, tmp_path: Path, name: str) -> None:
    cure = r"[Pp]ermission denied\. Cure: give this user the permission"
    path = nobody / name
    with pytest.raises(ImageFailed, match=f"cannot create {str(path)!r}: {cure}"):
        await create(path, "1MiB", "qcow2")
    with pytest.raises(ImageFailed, match=cure):
        await overlay(tmp_path / "top", nobody / "base", "raw")
    with pytest.raises(ImageFailed, match=cure):
        await convert(path, path, source_format="raw", format="raw", replace=True)


async def test_a_base_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    await create(tmp_path / "base", 4096, "raw")
    monkeypatch.setattr(os, "lseek", refuse)
    with pytest.raises(ImageFailed, match=r"cannot make an overlay of .*: Input/output error"):
        await overlay(tmp_path / "top", tmp_path / "base", "raw")


async def test_a_name_too_long(tmp_path: Path) -> None:
    with pytest.raises(ImageFailed, match=r"name too long\. Cure: choose a shorter name"):
        await create(tmp_path / ("n" * 256), "1MiB", "qcow2")


async def test_what_a_killed_draft_left_is_swept_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = tmp_path / ".qk-0123456789ab.tmp"
    dead.mkdir()
    (dead / "disk").touch()
    (tmp_path / ".qk-mine.tmp").mkdir()
    async with new_image(tmp_path / "one", "vmdk") as living:
        assert not dead.exists()
        touch(living)
        async with new_image(tmp_path / "two", "vmdk") as other:
            touch(other)
    assert left(tmp_path) == [".qk-mine.tmp", "one", "two"]


async def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ImageFailed, match=r"there is no directory .*Cure: create it") as caught:
        await create(tmp_path / "absent" / "disk", "1MiB", "qcow2")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


async def test_missing_base(tmp_path: Path) -> None:
    with pytest.raises(ImageFailed, match="No such file or directory"):
        await overlay(tmp_path / "top", tmp_path / "absent", "qcow2")
    assert left(tmp_path) == []


async def test_base_in_another_format(tmp_path: Path) -> None:
    await create(tmp_path / "base", 4096, "raw")
    with pytest.raises(ImageFailed):
        await overlay(tmp_path / "top", tmp_path / "base", "qcow2")
    assert left(tmp_path) == ["base"]


async def test_base_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = await create(tmp_path / "base", "1MiB", "qcow2")
    monkeypatch.setattr("qmpkit.images.in_use.image_locked", lambda path, for_writing: True)
    with base.open(), pytest.raises(ImageInUse) as caught:
        await overlay(tmp_path / "top", base, "qcow2")
    assert f"(pid {os.getpid()}) writes to it" in str(caught.value)
    assert left(tmp_path) == ["base"]


async def test_no_qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BinaryMissing) as caught:
        await create(tmp_path / "disk", "1MiB", "qcow2")
    assert str(caught.value) == ("qemu-img is not on PATH. Cure: sudo apt install qemu-utils")
    assert left(tmp_path) == []


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02])
async def test_cancelled(tmp_path: Path, delay: float) -> None:
    """A slow qemu-img is cut off, whatever it has written."""
    slow = tmp_path / "bin" / "qemu-img"
    slow.parent.mkdir()
    slow.write_text('#!/bin/sh\necho half > "$6"\nexec sleep 60\n')
    slow.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
        with trio.move_on_after(delay) as scope:
            await create(work / "disk", "1MiB", "qcow2")
    assert scope.cancelled_caught
    assert left(work) == []
