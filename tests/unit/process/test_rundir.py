"""The runtime directory: whose it is, how long its paths are, what stays in it."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from qmpkit.errors import HostLacks
from qmpkit.process import rundir
from qmpkit.process.held_dirs import hold_new_dir
from qmpkit.process.rundir import ROOT_LIMIT, machine_dir, owner_of, runtime_root, socket_path
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.leaks import leaks


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path is short; pytest's own are too long for sockets."""
    path = Path(tempfile.mkdtemp(prefix="qk-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def root(short: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", str(short / "run"))
    return short / "run"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_our_own_variable_comes_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(root.parent))
    assert runtime_root() == root
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert runtime_root() == root, "and again when it exists"


def test_then_the_sessions_directory(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QMPKIT_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    assert runtime_root() == short / "qmpkit"


@pytest.mark.parametrize("xdg", ["", "relative", "/no/such/directory"])
def test_then_the_systems(xdg: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QMPKIT_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", xdg)
    monkeypatch.setattr(rundir, "verify", lambda root: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime_root() == Path("/run/qmpkit")
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert runtime_root() == Path("/tmp/qmpkit-1234")


def test_roots_own_login_is_not_the_place_for_what_outlives_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A service of root's looks in /run/qmpkit too: both have to find the same farms."""
    monkeypatch.delenv("QMPKIT_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    monkeypatch.setattr(rundir, "verify", lambda root: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Path, "stat", lambda self: tmp_path.lstat())  # it is there, and root's
    assert runtime_root() == Path("/run/qmpkit")


def test_the_session_of_another_user_is_not_ours(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under sudo, which may keep the variable."""
    monkeypatch.delenv("QMPKIT_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    monkeypatch.setattr(rundir, "verify", lambda root: None)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert runtime_root() == Path(f"/tmp/qmpkit-{other}")


def refused(why: str) -> None:
    with pytest.raises(HostLacks, match=why) as caught:
        runtime_root()
    assert caught.value.cure


def test_a_symbolic_link_is_refused(root: Path) -> None:
    (root.parent / "elsewhere").mkdir(mode=0o700)
    root.symlink_to(root.parent / "elsewhere")
    refused("is a symbolic link")


def test_a_file_is_refused(root: Path) -> None:
    root.write_text("")
    refused("is not a directory")


def test_what_others_can_write_is_refused(root: Path) -> None:
    root.mkdir()
    root.chmod(0o777)
    refused("is writable by others")


def test_what_belongs_to_another_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir(mode=0o700)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    refused(f"belongs to user {owner}, not to us")


def test_a_missing_parent_is_refused(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", str(short / "no" / "run"))
    refused("No such file or directory")


def test_too_long_a_root_is_refused(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", str(short / ("x" * ROOT_LIMIT)))
    refused(f"longer than {ROOT_LIMIT} bytes")


async def test_the_longest_paths_fit(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = short / ("x" * (ROOT_LIMIT - len(str(short)) - 1))
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", str(root))
    monkeypatch.setattr(os, "getpid", lambda: 4194304)  # the greatest there is
    async with machine_dir("ü" * 300 + "/ , '\"") as directory:
        path = socket_path(directory, "s" * 20)
        assert len(os.fsencode(path)) <= 107
        assert directory.parent == root


@pytest.mark.parametrize("name", ["", "a/b", "x" * 21])
def test_a_sockets_name_has_bounds(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 20 bytes"):
        socket_path(Path("/run/qmpkit/vm.1.abcd"), name)


async def test_a_machines_directory_is_private_and_goes_with_the_block(root: Path) -> None:
    async with leaks(), machine_dir("web server") as one, machine_dir("web server") as two:
        assert one != two
        assert one.name.startswith("web-server")
        assert owner_of(one) == os.getpid()
        assert stat.S_IMODE(one.stat().st_mode) == 0o700
        (one / "qmp").touch()
        (one / "below").mkdir()
    assert names(root) == []


async def use_a_directory() -> None:
    async with leaks(), machine_dir("vm") as directory:
        (directory / "qmp").touch()
        await trio.lowlevel.checkpoint()


async def test_cancelled_anywhere_the_directory_goes(root: Path) -> None:
    assert await cancel_at_every_checkpoint(use_a_directory) >= 2


LEFT = """
import os, signal, trio
from qmpkit.process.rundir import machine_dir

async def main():
    async with machine_dir("left"):
        os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""


async def test_what_a_killed_program_left_is_swept(root: Path) -> None:
    await trio.run_process([sys.executable, "-c", LEFT], check=False)
    await trio.run_process([sys.executable, "-c", LEFT], check=False)
    [left] = names(root)  # the second one has swept what the first one left
    (root / "kept").mkdir()
    async with machine_dir("new") as new:
        assert names(root) == sorted(["kept", new.name])
        assert left != new.name


async def test_what_a_living_program_holds_is_not_swept(root: Path) -> None:
    """Its number may look free here (another pid namespace), but its lock is not."""
    held = hold_new_dir(runtime_root(), lambda: "vm.9999999.abcd")
    async with machine_dir("new"):
        assert held.path.exists()
    held.remove()


async def test_a_number_that_lives_again_keeps_nothing(root: Path) -> None:
    (runtime_root() / f"vm.{os.getpid()}.abcd").mkdir()
    async with machine_dir("new") as new:
        assert names(root) == [new.name]


def test_where_nothing_can_be_made_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", "/proc/qmpkit")
    refused("cannot make the runtime directory /proc/qmpkit")
