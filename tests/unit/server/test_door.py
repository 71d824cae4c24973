"""The daemon's socket: its user's alone, or a group's; nobody else comes in."""

from __future__ import annotations

import grp
import os
import pwd
import socket
from pathlib import Path

import pytest

from qmpkit.errors import HostLacks
from qmpkit.process.sockets import listened_at
from qmpkit.server.door import doors, opened_door, shared_door

_ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A runtime directory in a root that others could pass."""
    root = tmp_path / "run"
    for folder in (root, root / "lab"):
        folder.mkdir()
    for folder in (tmp_path, *tmp_path.parents[:3]):  # as far as pytest has made them
        if folder.name.startswith(("pytest-", "popen-", tmp_path.name)):
            folder.chmod(0o755)
    monkeypatch.setenv("QMPKIT_RUNTIME_DIR", str(root))
    return root / "lab"


def _comes_in(path: Path, group: str = "nogroup") -> bool:
    """Whether *nobody*, as a member of *group* alone, can connect."""
    groups, nobody = os.getgroups(), pwd.getpwnam("nobody")
    with socket.socket(socket.AF_UNIX) as sock:
        os.setgroups([])
        os.setegid(grp.getgrnam(group).gr_gid)
        os.seteuid(nobody.pw_uid)
        try:
            sock.connect(str(path))
        except PermissionError:
            return False
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)
    return True


def test_it_is_its_users_alone_and_goes(runtime: Path) -> None:
    with opened_door("lab", runtime, None) as (_, path):
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert not path.parent.exists()


def test_what_a_killed_daemon_left_is_replaced(runtime: Path) -> None:
    left, path = runtime / ".api", runtime / ".api" / "http"
    left.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with opened_door("lab", runtime, None) as (_, found):
        assert found == path
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def _own_group() -> str:
    return grp.getgrgid(os.getegid()).gr_name


def _listens_there(path: Path) -> socket.socket:
    """As systemd does it: what is at *path* goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_the_one_that_systemd_listens_at_is_left_to_it(runtime: Path) -> None:
    path = shared_door("lab")
    with _listens_there(path):
        with pytest.raises(HostLacks) as caught, opened_door("lab", runtime, _own_group()):
            pass
        assert "systemctl restart" in caught.value.cure
        assert listened_at(path)
    with opened_door("lab", runtime, _own_group()) as (_, found):
        assert found == path  # nobody listens any more
    assert not path.parent.exists()


def test_what_has_come_to_its_place_stays(runtime: Path) -> None:
    with opened_door("lab", runtime, _own_group()) as (_, path):
        other = _listens_there(path)
    with other:
        assert listened_at(path)


def test_a_group_that_is_not_there(runtime: Path) -> None:
    with (
        pytest.raises(HostLacks, match="no group 'nowhere'"),
        opened_door("lab", runtime, "nowhere"),
    ):
        pass


@_ONLY_ROOT
def test_another_user_stays_outside(runtime: Path) -> None:
    with opened_door("lab", runtime, None) as (_, path):
        assert not _comes_in(path)


@_ONLY_ROOT
def test_members_of_the_group_come_in(runtime: Path) -> None:
    with opened_door("lab", runtime, "games") as (_, path):
        assert path in doors("lab")
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o660, 0o750)
        assert _comes_in(path, "games")
        assert not _comes_in(path, "nogroup")
