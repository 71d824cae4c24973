"""Who holds a file or a port: asked of the real kernel."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qmpkit.host.holders import (
    Holder,
    holders_of,
    image_locked,
    processes_with,
    socket_inodes,
)


@contextmanager
def locked(path: Path, *offsets: int) -> Iterator[None]:
    """Hold shared locks on single bytes, as QEMU does."""
    fd = os.open(path, os.O_RDONLY)
    try:
        for offset in offsets:
            lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, offset, 1, 0)
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        yield
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("offsets", "reading", "writing"),
    [
        ((), False, False),
        ((100, 101, 103, 201, 203), True, True),  # a guest with a writable disk
        ((100, 201, 203), False, True),  # the base of a running overlay
        ((100,), False, False),
    ],
)
def test_locks(tmp_path: Path, offsets: tuple[int, ...], reading: bool, writing: bool) -> None:
    image = tmp_path / "a,b\nc"
    image.touch()
    with locked(image, *offsets):
        assert image_locked(image, for_writing=False) is reading
        assert image_locked(image, for_writing=True) is writing
    assert not image_locked(image, for_writing=True)


def test_the_holder_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "held"
    with path.open("w"):
        found = processes_with(str(path))
    comm = Path("/proc/self/comm").read_text().strip()

    assert found == [f"{comm} (pid {os.getpid()})"]
    assert processes_with(str(path)) == []


@pytest.mark.parametrize("link", ["symlink", "hard link", "renamed"])
def test_the_holder_under_another_name(tmp_path: Path, link: str) -> None:
    path, other = tmp_path / "held", tmp_path / "other"
    with path.open("w"):
        if link == "symlink":
            other.symlink_to(path)
        elif link == "hard link":
            other.hardlink_to(path)
        else:
            path.rename(other)
        assert [holder.pid for holder in holders_of(other)] == [os.getpid()]
    assert holders_of(other) == ()
    assert holders_of(tmp_path / "absent") == ()


@pytest.mark.parametrize(
    ("argv", "machine"),
    [
        (["-name", "guest=web,debug-threads=on"], "web"),
        (["-name", "web,process=x"], "web"),
        (["-nodefaults", "-name", "debug-threads=on,guest=a,,b"], "a,b"),
        (["-machine", "q35"], ""),
    ],
)
def test_a_qemu_is_named_by_its_guest(tmp_path: Path, argv: list[str], machine: str) -> None:
    image = tmp_path / "disk"
    image.touch()
    process = tmp_path / "proc" / "12"
    (process / "fd").mkdir(parents=True)
    (process / "fd" / "7").symlink_to(image)
    (process / "comm").write_text("qemu-system-x86\n")
    (process / "cmdline").write_text("\0".join(["/usr/bin/qemu-system-x86_64", *argv, ""]))
    (found,) = holders_of(image, tmp_path)
    assert found == Holder(12, "qemu-system-x86_64", machine)
    program = "qemu-system-x86_64"
    named = f"machine {machine!r} ({program}, pid 12)" if machine else f"{program} (pid 12)"
    assert str(found) == named


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_holder_of_a_port(family: socket.AddressFamily) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        except OSError:
            assert family == socket.AF_INET6  # a host without IPv6 has no such port to find
            return
        listener.listen()
        port = listener.getsockname()[1]
        (inode,) = socket_inodes("tcp", port)
        assert f"(pid {os.getpid()})" in processes_with(inode)[0]
    assert socket_inodes("tcp", port) == []


def test_the_holder_of_a_udp_port() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        assert len(socket_inodes("udp", port)) == 1


def test_a_host_without_those_tables(tmp_path: Path) -> None:
    assert socket_inodes("tcp", 80, tmp_path) == []
