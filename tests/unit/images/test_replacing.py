"""A new image in the place of an old one: held meanwhile, and open to nobody more than that was."""
# ruff: noqa: ASYNC240  files of a few bytes

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qmpkit.errors import ImageFailed, ImageInUse
from qmpkit.host.holders import image_locked
from qmpkit.images import drafts
from qmpkit.images.drafts import new_image

HOLDS_WRITE, DENIES_WRITE = 101, 201
NOBODY = 65534


@pytest.fixture(autouse=True, params=["unnamed", "named"])
def draft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "named":

        def refuse(folder: Path, child_fd: int) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(drafts, "_Unnamed", refuse)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.write_text("old")
    return path


@contextmanager
def locked(path: Path, byte: int) -> Iterator[None]:
    """As QEMU marks what it does."""
    fd = os.open(path, os.O_RDONLY)
    try:
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        yield
    finally:
        os.close(fd)


def write(draft: drafts.Draft) -> None:
    own = next(iter(draft.fds.values()), None)
    fd = os.open(draft.path, os.O_CREAT | os.O_WRONLY, 0o644) if own is None else os.dup(own)
    os.write(fd, b"new")
    os.close(fd)


async def replace(path: Path, *, private: bool = False) -> None:
    async with new_image(path, "raw", replace=True, private=private) as draft:
        write(draft)


def left(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def content(path: Path) -> str:
    return path.read_text()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- who may have it open


async def test_nobody_else_may_write_meanwhile(target: Path) -> None:
    old = target.open()
    async with new_image(target, "raw", replace=True) as draft:
        assert image_locked(target, for_writing=True)
        write(draft)
    assert content(target) == "new"
    assert not image_locked(f"/proc/self/fd/{old.fileno()}", for_writing=True)
    old.close()


@pytest.mark.parametrize("byte", [HOLDS_WRITE, DENIES_WRITE])
async def test_what_is_in_use_is_not_replaced(target: Path, byte: int) -> None:
    with locked(target, byte), pytest.raises(ImageInUse, match="another process has it open"):
        await replace(target)
    with pytest.raises(ImageInUse):
        async with new_image(target, "raw", replace=True) as draft:
            write(draft)
            with locked(target, byte):  # a writer without QEMU's manners
                draft._publish()
    assert content(target) == "old"
    assert left(target.parent) == ["target"]
    assert not image_locked(target, for_writing=True)


async def test_who_reads_the_old_seed_may_go_on(target: Path) -> None:
    with locked(target, DENIES_WRITE):
        await replace(target, private=True)
    assert content(target) == "new"


async def test_what_took_its_place_meanwhile_stays(target: Path) -> None:
    with pytest.raises(ImageFailed, match="another file has taken its place meanwhile"):
        async with new_image(target, "raw", replace=True) as draft:
            write(draft)
            target.rename(target.with_name("away"))
            target.write_text("theirs")
    assert content(target) == "theirs"
    target.unlink()
    with pytest.raises(ImageFailed, match="it exists already"):
        async with new_image(target, "raw", replace=True) as draft:
            write(draft)
            target.write_text("theirs")
    assert content(target) == "theirs"
    assert sorted(left(target.parent)) == ["away", "target"]


async def test_a_link_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(ImageFailed) as caught:
        await replace(tmp_path / "one")
    assert str(caught.value) == (
        f"cannot create {str(tmp_path / 'one')!r}: Too many levels of symbolic links. "
        "Cure: the link leads in a circle: name the file itself"
    )


# --- whose it is


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o664, 0o444])
async def test_its_mode_is_kept(target: Path, bits: int) -> None:
    target.chmod(bits)
    await replace(target)
    assert mode(target) == bits
    assert content(target) == "new"


async def test_it_is_private_before_it_has_its_name(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.chmod(0o600)
    seen: list[int] = []
    really = os.rename

    def look(source: str, *args: object, **folders: int) -> None:
        seen.append(os.stat(source, dir_fd=folders.get("src_dir_fd")).st_mode & 0o777)
        really(source, *args, **folders)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", look)
    await replace(target)
    assert seen == [0o600]


async def test_a_seed_is_its_owners_alone(target: Path) -> None:
    target.chmod(0o666)
    await replace(target, private=True)
    assert mode(target) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
async def test_its_owner_is_kept(target: Path) -> None:
    os.chown(target, NOBODY, NOBODY)
    target.chmod(0o640)
    await replace(target)
    found = target.stat()
    assert (found.st_uid, found.st_gid, mode(target)) == (NOBODY, NOBODY, 0o640)


@pytest.mark.parametrize(("bits", "kept"), [(0o660, 0o600), (0o664, 0o644), (0o606, 0o606)])
async def test_another_group_gets_what_all_others_had(
    target: Path, monkeypatch: pytest.MonkeyPatch, bits: int, kept: int
) -> None:
    target.chmod(bits)

    def refuse(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    os.chown(target, -1, _another_group())
    monkeypatch.setattr(os, "fchown", refuse)
    await replace(target)
    assert mode(target) == kept


def _another_group() -> int:
    if os.geteuid() == 0:
        return NOBODY
    others = [group for group in os.getgroups() if group != os.getegid()]
    if not others:
        pytest.skip("this user has one group alone")
    return others[0]


async def test_an_access_control_list(target: Path) -> None:
    """Its mask is what the mode shows: without the list it would be the group's."""
    acl = os.fsencode("system.posix_acl_access")
    target.chmod(0o600)
    #  version; user:: rw-, user:65534 rw-, group:: ---, mask rw-, other ---
    entries = [(1, 6, -1), (2, 6, NOBODY), (4, 0, -1), (16, 6, -1), (32, 0, -1)]
    raw = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, bits, who & 0xFFFFFFFF) for tag, bits, who in entries
    )
    try:
        os.setxattr(target, acl, raw)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error.strerror}")
    assert mode(target) == 0o660
    await replace(target)
    assert os.getxattr(target, acl) == raw
    assert mode(target) == 0o660
