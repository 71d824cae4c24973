"""`qmpkit image …` without qemu-img: interruptions, places, sizes, what is shown."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from qmpkit.cli import main
from qmpkit.cli.exits import Refusal
from qmpkit.cli.image_view import image_to_dict, print_chain
from qmpkit.cli.interrupt import interruptible
from qmpkit.cli.places import check_place, size_judged
from qmpkit.errors import ImageFailed
from qmpkit.testing import guests
from tests.unit.cli.images import snapshot_named, some_image


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


async def test_an_interruption_after_the_deed_is_none() -> None:
    with trio.fail_after(5):
        async with interruptible() as work:
            work.done = True
            interrupt()
            await trio.sleep_forever()


async def test_an_interruption_before_it_is_one() -> None:
    with trio.fail_after(5), pytest.raises(KeyboardInterrupt):
        async with interruptible():
            interrupt()
            await trio.sleep_forever()


async def test_the_last_moment_counts_as_after() -> None:
    """The end of the block is a checkpoint, where the signal is noticed at the latest."""
    async with interruptible() as work:
        with trio.CancelScope(shield=True):
            interrupt()
            await wait_all_tasks_blocked()
        work.done = True


def test_places(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "dead").symlink_to("nowhere/x")
    check_place(tmp_path / "new")
    check_place(tmp_path / "new", replace=True)
    check_place(tmp_path / "link", replace=True)
    for name in ("there", "link", "dead"):
        with pytest.raises(Refusal, match="exists already"):
            check_place(tmp_path / name)
    with pytest.raises(Refusal, match="is no regular file"):
        check_place(tmp_path, replace=True)
    for name, replace in (("no/new", False), ("dead", True)):
        with pytest.raises(Refusal, match="there is no directory '"):
            check_place(tmp_path / name, replace=replace)


@pytest.mark.parametrize(
    "said",
    [
        "/x/a.raw: The image size is too large for file format 'raw'",
        "Image size too large; max of 64TB",
        "/x/a.raw: Could not resize file: Invalid argument",
        "Could not open '/x/a.vmdk': L1 size too big",
        "Unsupported VDI image size (size is 0x7f, max supported is 0x1f)",
        "QED image size must be a non-zero multiple of cluster size and less than 70368744177664",
    ],
)
def test_a_size_too_large_is_a_mistake(said: str) -> None:
    told = "SIZE: 5 bytes are more than a raw image can have here: "
    with pytest.raises(Refusal, match=told), size_judged(5, "raw"):
        raise ImageFailed("/x/a.raw", "create", said)


def test_other_failures_are_not() -> None:
    with pytest.raises(ImageFailed), size_judged(5, "raw"):
        raise ImageFailed("/x/a.raw", "create", "No space left on device")
    with pytest.raises(Refusal), size_judged(1 << 63, "raw"):
        pytest.fail("nothing is begun")


def test_a_cache_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QMPKIT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(guests, "build_debian", lambda **_: pytest.fail("no place for it"))
    assert main(["image", "build", "debian"]) == 3
    assert capsys.readouterr() == (
        "",
        f"error: the cache directory '{tmp_path}/file/cache/guests' cannot be made: Not a "
        "directory. Cure: name another place: QMPKIT_CACHE_DIR=…, or a HOME that is yours\n",
    )


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_nothing_of_an_image_is_cut_off(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    path = "/var/lib/images/a-name-that-is-long-but-not-unusual.qcow2"
    print_chain([some_image(path, snapshots=(snapshot_named("before the upgrade"),))], "format x")
    shown = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    for cell in (path, "qcow2", "3 GiB (3221225472 bytes)", "1.2 GiB (1288490188 bytes)"):
        assert cell in shown
    assert "before the upgrade" in shown
    assert "none, the disk alone" in shown
    assert "…" not in shown
    assert ("\n  size: 3 GiB" in shown) is (columns < 200)


def test_a_circle_of_links_is_nothing_to_replace(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(Refusal, match="one is no regular file, which alone is replaced"):
        check_place(tmp_path / "one", replace=True)


def test_a_place_that_may_not_be_looked_at_is_left_to_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    check_place(tmp_path / "disk")


def test_in_use_by_whom_this_user_may_not_see(capsys: pytest.CaptureFixture[str]) -> None:
    image = some_image("/a.qcow2", in_use=True)
    print_chain([image], "format x")
    assert "in use by a process that this user may not see" in capsys.readouterr().out
    assert image_to_dict(image)["in_use"] is True


def test_nothing_of_a_profile_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for columns in ("40", "80"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["profiles"]) == 0
        shown = capsys.readouterr().out
        assert "…" not in shown
        assert "tiny-aarch64" in shown
