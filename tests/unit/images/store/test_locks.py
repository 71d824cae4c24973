"""One at a time, between tasks as between programs; who waits can give up."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import trio

from qmpkit.images.store.locks import held, held_folder, is_held


async def test_one_at_a_time(tmp_path: Path) -> None:
    path, inside = tmp_path / "lock", 0

    async def enter() -> None:
        nonlocal inside
        async with held(path):
            inside += 1
            assert inside == 1
            await trio.sleep(0.01)
            inside -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(enter)
    assert not is_held(path)


async def test_who_waits_can_give_up(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    async with held(path):
        assert is_held(path)
        with trio.fail_after(2), trio.move_on_after(0.05) as scope:
            async with held(path):
                pytest.fail("it is held")
        assert scope.cancelled_caught
    # The thread that waited for it gives it back at once.
    with trio.fail_after(2):
        async with held(path):
            assert is_held(path)
    assert not is_held(path)


async def test_a_folder_that_its_holder_removes(tmp_path: Path) -> None:
    path, waited = tmp_path / "folder", trio.Event()
    async with trio.open_nursery() as nursery, held_folder(path):
        nursery.start_soon(_second, path, waited)
        await waited.wait()
        shutil.rmtree(path)
    assert (path / "second").exists()


async def test_a_folder_that_goes_as_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder removes it between "it exists" and a look at what does."""
    path, make = tmp_path / "folder", os.mkdir
    found: list[Path] = []

    def mkdir(folder: Path, mode: int = 0o777) -> None:
        if not found:
            found.append(folder)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), folder)
        make(folder, mode)

    monkeypatch.setattr("os.mkdir", mkdir)
    async with held_folder(path):
        assert is_held(path)
    assert found == [path]


async def test_a_file_where_the_folder_would_be(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.touch()
    with pytest.raises(NotADirectoryError):
        async with held_folder(path):
            pytest.fail("it is no folder")


async def _second(path: Path, waited: trio.Event) -> None:
    async with held_folder(path, waited.set):
        (path / "second").touch()


async def test_where_nothing_can_be_made(tmp_path: Path) -> None:
    for entering in (held(tmp_path / "no" / "lock"), held_folder(tmp_path / "no" / "folder")):
        with pytest.raises(FileNotFoundError):
            async with entering:
                pytest.fail("there is no such directory")
