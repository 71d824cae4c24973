"""However the making or changing of an image ends, its place holds all of it or what was there."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from qmpkit import images
from qmpkit.errors import ImageFailed, QmpkitError
from qmpkit.host.headers import read_header
from qmpkit.images import drafts
from qmpkit.images.new import place_overlay
from qmpkit.process.spawner import shared_spawner
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks, living_with
from tests.sizes import IMAGE_KILLS

pytestmark = pytest.mark.live

MIB, GIB = 1 << 20, 1 << 30

CONVERT = """
import sys, trio
from qmpkit import images
async def main():
    print("go", flush=True)
    await images.convert(sys.argv[1], sys.argv[2], source_format="raw", format=sys.argv[3],
                         replace=len(sys.argv) > 4)
    print("done", flush=True)
trio.run(main)
"""

RESIZE = """
import sys, trio
from qmpkit import images
from qmpkit.process.spawner import shared_spawner
async def main():
    async with shared_spawner():
        print("go", flush=True)
        while True:
            await images.resize(sys.argv[1], "+100GiB", "qcow2")
trio.run(main)
"""


def left(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def content(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A source that takes some 30 ms to copy."""
    path = tmp_path / "raw"
    path.write_bytes(random.Random(1).randbytes(8 * MIB))
    return path


def tools_at_work() -> list[int]:
    """The qemu-imgs of this process and those below it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid = int(stat.parent.name)
            if "(qemu-img)" in stat.read_text() and os.getpid() in _ancestors(pid):
                found.append(pid)
        except OSError:
            continue
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _ancestors(pid: int) -> Iterator[int]:
    while pid:
        yield pid
        pid = parent_of(pid)


async def killed_program(code: str, *argv: object, after: float) -> bytes:
    """Run a program and kill it so many seconds after its "go"; what it printed after that."""
    token = secrets.token_hex(8)
    env = {**os.environ, "QMPKIT_TEST_TOKEN": token}
    words = [sys.executable, "-c", code, *map(str, argv)]
    program = await trio.lowlevel.open_process(words, stdout=subprocess.PIPE, env=env)
    assert program.stdout is not None
    printed = b""
    async with program.stdout:
        try:
            while not printed.endswith(b"\n"):  # unbuffered, Python writes the newline by itself
                more = await program.stdout.receive_some(3)
                assert more, "the program has ended"
                printed += more
            await trio.sleep(after)
        finally:
            program.kill()
            with trio.CancelScope(shield=True):
                await program.wait()
        printed = b"".join([chunk async for chunk in program.stdout])
    with trio.move_on_after(2):
        # Processes that are not ours tell us nothing; and one that ends has no environment
        # any more when it still has its files.
        while living_with(token) or _a_tool_is_ending():  # noqa: ASYNC110
            await trio.sleep(0.005)
    assert living_with(token) == []
    return printed


def _a_tool_is_ending() -> bool:
    """Whether a qemu-img, anybody's, has a thread yet but no environment any more."""
    return any(map(_is_ending_tool, Path("/proc").glob("[0-9]*")))


def _is_ending_tool(process: Path) -> bool:
    try:
        if (process / "comm").read_text() != "qemu-img\n" or (process / "environ").read_bytes():
            return False
        # Its first thread is dead before the others are, which still have its files.
        threads = [(thread / "stat").read_text() for thread in (process / "task").iterdir()]
    except OSError:
        return False
    return any(thread.rpartition(")")[2].split()[0] not in "ZX" for thread in threads)


# --- SIGKILL


@pytest.mark.bound(300)
async def test_python_is_killed_in_a_conversion(tmp_path: Path, raw: Path) -> None:
    before, target = content(raw), tmp_path / "target"
    kills = midway = 0
    # A kill that comes when all is done tells nothing: it goes on until one came before.
    while kills < IMAGE_KILLS or not midway:
        after = 0.08 * (kills % IMAGE_KILLS) / IMAGE_KILLS
        printed = await killed_program(CONVERT, raw, target, "qcow2", after=after)
        assert left(tmp_path) <= {"raw", "target"}
        kills += 1
        midway += not target.exists()
        if target.exists():
            assert (await images.check(target, "qcow2")).ok
            target.unlink()
        else:
            assert printed == b""
    assert content(raw) == before


@pytest.mark.bound(300)
async def test_python_is_killed_while_it_replaces(tmp_path: Path, raw: Path) -> None:
    target = tmp_path / "target"
    for number in range(IMAGE_KILLS // 2):
        target.write_bytes(b"precious")
        after = 0.16 * number / IMAGE_KILLS
        await killed_program(CONVERT, raw, target, "qcow2", "replace", after=after)
        if content(target) != b"precious":
            assert (await images.check(target, "qcow2")).ok


@pytest.mark.alone
@pytest.mark.bound(300)
async def test_python_is_killed_where_the_draft_has_a_name(tmp_path: Path, raw: Path) -> None:
    """What is left of it goes with the next one."""
    kills, remained = 0, False
    while kills < IMAGE_KILLS // 2 or not remained:
        after = 0.16 * (kills % IMAGE_KILLS) / IMAGE_KILLS
        kills += 1
        await killed_program(CONVERT, raw, tmp_path / "target", "vmdk", after=after)
        drafts_left = {name for name in left(tmp_path) if name.startswith(".qk-")}
        assert len(drafts_left) <= 1
        remained |= bool(drafts_left)
        (tmp_path / "target").unlink(missing_ok=True)
    await images.create(tmp_path / "next", "1MiB", "vmdk")
    assert left(tmp_path) == {"raw", "next"}


@pytest.mark.alone
@pytest.mark.bound(300)
async def test_python_is_killed_in_a_resize(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    kills, grown = 0, False
    while kills < IMAGE_KILLS or not grown:
        path.unlink(missing_ok=True)
        await images.create(path, "100GiB", "qcow2")
        await killed_program(RESIZE, path, after=0.06 + 0.1 * kills / IMAGE_KILLS)
        assert (await images.check(path, "qcow2")).ok
        hundreds, rest = divmod((await images.info(path)).virtual_size, 100 * GIB)
        assert rest == 0
        grown |= hundreds > 1
        kills += 1


@pytest.mark.parametrize("victim", ["qemu-img", "spawner"])
async def test_what_works_for_us_is_killed(tmp_path: Path, raw: Path, victim: str) -> None:
    before = content(raw)
    async with leaks():
        with pytest.raises(QmpkitError, match=r"SIGKILL|exit status unknown"):
            async with images.converting(
                raw, tmp_path / "target", source_format="raw", format="qcow2", compress=True
            ) as progress:
                async for fraction in progress:
                    if fraction:
                        break
                (tool,) = tools_at_work()
                os.kill(tool if victim == "qemu-img" else parent_of(tool), signal.SIGKILL)
    assert left(tmp_path) == {"raw"}
    assert content(raw) == before


# --- cancellation


@pytest.fixture(params=["unnamed", "named"])
def draft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "named":

        def refuse(folder: Path, child_fd: int) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(drafts, "_Unnamed", refuse)


async def test_a_conversion_cancelled_at_every_checkpoint(
    tmp_path: Path, raw: Path, draft: None
) -> None:
    os.truncate(raw, MIB)
    before, target = content(raw), tmp_path / "target"

    async def convert() -> None:
        async with images.converting(raw, target, source_format="raw", format="qcow2") as progress:
            async for _ in progress:
                pass

    async def whole_or_not_there() -> None:
        assert left(tmp_path) <= {"raw", "target"}
        assert content(raw) == before
        if target.exists():
            assert (await images.check(target, "qcow2")).ok
            target.unlink()

    async with leaks():
        assert await cancel_at_every_checkpoint(convert, after=whole_or_not_there) > 20


async def test_the_others_cancelled_at_every_checkpoint(tmp_path: Path) -> None:
    base = await images.create(tmp_path / "base", "1MiB", "qcow2")
    grown = await images.create(tmp_path / "grown", "1MiB", "qcow2")

    async def all_is_well() -> None:
        (tmp_path / "top").unlink(missing_ok=True)
        assert left(tmp_path) == {"base", "grown"}
        assert read_header(grown).size in (MIB, 2 * MIB)
        assert (await images.check(grown, "qcow2")).ok

    actions: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: images.chain(base),
        lambda: images.check(base, "qcow2", repair="leaks"),
        lambda: images.resize(grown, "2MiB", "qcow2"),
        lambda: place_overlay(tmp_path / "top", base, "qcow2", "qcow2"),
    )
    async with leaks(), shared_spawner():
        for act in actions:
            assert await cancel_at_every_checkpoint(act, after=all_is_well) > 10


@pytest.mark.parametrize("after", [0.0, 0.01, 0.03, 0.06])
async def test_cancelled_in_the_middle(tmp_path: Path, raw: Path, after: float) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    with trio.move_on_after(after) as scope:
        await images.convert(
            raw, target, source_format="raw", format="qcow2", compress=True, replace=True
        )
    assert scope.cancelled_caught
    assert content(target) == b"precious"
    assert left(tmp_path) == {"raw", "target"}


# --- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs CAP_SYS_ADMIN to mount a small file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk(small_disk: Path, raw: Path, draft: None) -> None:
    before = content(raw)
    target = small_disk / "disk"
    full = r"No space left on device\. Cure: free some space there, or choose another place"
    with pytest.raises(ImageFailed, match=f"cannot convert to {str(target)!r}: .*{full}"):
        await images.convert(raw, target, source_format="raw", format="qcow2")
    with pytest.raises(ImageFailed, match=f"cannot create {str(target)!r}: .*{full}"):
        await images.create(target, "8MiB", "qcow2", options=images.Options(preallocation="full"))
    assert left(small_disk) == set()
    assert content(raw) == before
    target.write_bytes(b"precious")
    with pytest.raises(ImageFailed, match=full):
        await images.convert(raw, target, source_format="raw", format="raw", replace=True)
    assert content(target) == b"precious"
    assert left(small_disk) == {"disk"}
    # What was taken is given back.
    target.unlink()
    await images.create(target, "3MiB", "raw", options=images.Options(preallocation="full"))
