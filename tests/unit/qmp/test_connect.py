"""To somebody else's QEMU: held, stuck and absent are told apart, and nothing stays open."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

import qmpkit
from qmpkit.qmp.connect import held
from qmpkit.qmp.errors import MonitorAbsent, MonitorBusy, MonitorGarbled, MonitorSilent
from qmpkit.testing.cancel import cancel_at_every_checkpoint
from qmpkit.testing.fake import fake_qemu

BOUND = 0.1  # seconds; real ones, as the kernel's sockets know no other clock


@asynccontextmanager
async def listening(path: Path, *, accept: int = 99, silent: bool = False) -> AsyncIterator[None]:
    """A monitor on *path* that takes *accept* clients one after the other, as QEMU does."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen(1)
        listener.setblocking(False)
        wrapped = trio.socket.from_stdlib_socket(listener.dup())
        with wrapped:
            async with fake_qemu(silent=silent) as fake, trio.open_nursery() as nursery:

                async def take() -> None:
                    for _ in range(accept):
                        client, _ = await wrapped.accept()
                        await fake.serve(socket.socket(fileno=client.detach()))

                nursery.start_soon(take)
                yield
                nursery.cancel_scope.cancel()


def open_sockets() -> set[str]:
    links = {str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    return {link for link in links if link.startswith("socket:")}


async def test_by_path_and_by_socket(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with listening(path):
        async with qmpkit.connect(path) as qmp:
            assert qmp.name == str(path)
            assert await qmp.execute("query-status")
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.fspath(path))
        async with qmpkit.connect(sock, name="web") as qmp:
            assert qmp.name == "web"
            assert await qmp.execute("query-status")
        assert sock.fileno() == -1


async def test_held_is_told_from_stuck_and_nothing_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with listening(path), qmpkit.connect(path):
        before = open_sockets()
        for _ in range(5):  # queued at first; later ones find the queue full
            with pytest.raises(MonitorBusy, match=r"held by another client.*second monitor"):
                async with qmpkit.connect(path, greeting_timeout=BOUND):
                    raise AssertionError
        assert open_sockets() == before


async def test_a_queue_of_dead_connections_is_waited_out(tmp_path: Path) -> None:
    """Those who gave up still stand in the queue when the monitor becomes free."""
    path = tmp_path / "qmp"
    async with listening(path):
        async with qmpkit.connect(path):
            for _ in range(5):
                with pytest.raises(MonitorBusy):
                    async with qmpkit.connect(path, greeting_timeout=0.01):
                        raise AssertionError
        async with qmpkit.connect(path) as qmp:
            assert await qmp.execute("query-status")


@pytest.mark.parametrize("accept", [0, 1], ids=["accepts nobody", "accepts and is silent"])
async def test_stuck(tmp_path: Path, accept: int) -> None:
    path = tmp_path / "qmp"
    before = open_sockets()
    async with listening(path, accept=accept, silent=True):
        with pytest.raises(MonitorSilent, match=r"no QMP greeting within 0\.1 s") as stuck:
            async with qmpkit.connect(path, greeting_timeout=BOUND):
                raise AssertionError
        assert type(stuck.value) is MonitorSilent
    assert open_sockets() == before


async def test_the_second_monitor_is_the_way_round(tmp_path: Path) -> None:
    first, second = tmp_path / "qmp", tmp_path / "tools"
    async with (
        listening(first),
        listening(second),
        qmpkit.connect(first),
        qmpkit.connect(first, second=second, greeting_timeout=BOUND) as qmp,
    ):
        assert qmp.name == str(second)
        assert await qmp.execute("query-status")


async def test_when_both_fail_the_firsts_trouble_is_told(tmp_path: Path) -> None:
    first = tmp_path / "qmp"
    async with listening(first), qmpkit.connect(first):
        for second in (first, tmp_path / "absent"):
            with pytest.raises(MonitorBusy):
                async with qmpkit.connect(first, second=second, greeting_timeout=BOUND):
                    raise AssertionError


async def test_absent(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(os.fspath(ended))
    (tmp_path / "file").touch()
    before = open_sockets()
    for path, said in [
        (tmp_path / "file", "it is no socket"),
        (tmp_path, "it is no socket"),
        (tmp_path / "missing", "No such file.*QEMU removes it when it ends"),
        (ended, "refused.*has ended"),
        (tmp_path / ("x" * 200), "too long"),
    ]:
        with pytest.raises(MonitorAbsent, match=said) as absent:
            async with qmpkit.connect(path):
                raise AssertionError
        assert absent.value.path == str(path)
    assert open_sockets() == before


async def test_what_is_no_monitor(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"220 mail.example ESMTP\r\n")
    with theirs, pytest.raises(MonitorGarbled, match="monitor broke the protocol"):
        async with qmpkit.connect(ours):
            raise AssertionError
    assert ours.fileno() == -1


async def test_leaving_the_block_leaves_qemu_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    async with listening(path):
        for _ in range(3):
            async with qmpkit.connect(path) as qmp:
                await qmp.execute("query-status")


async def test_cancelled_at_every_checkpoint_nothing_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "qmp"

    async def visit() -> None:
        async with qmpkit.connect(path) as qmp:
            await qmp.execute("query-status")

    async def check() -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert open_sockets() == before

    async with listening(path):
        before = open_sockets()
        assert await cancel_at_every_checkpoint(visit, after=check) >= 4


TABLE = """\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 100 /run/with space/qmp
{}"""
ACCEPTED = "0000000000000000: 00000003 00000000 00000000 0001 03 101 /run/with space/qmp\n"
QUEUED = "0000000000000000: 00000003 00000000 00000000 0001 02 0 /run/with space/qmp\n"
OTHER = "0000000000000000: 00000003 00000000 00000000 0001 03 102 /run/other\n"
NAMELESS = "0000000000000000: 00000003 00000000 00000000 0001 03 103\n"


@pytest.mark.parametrize(
    ("rows", "ours_is_open", "expected"),
    [
        ("", True, False),
        (QUEUED, True, False),  # accepted nobody: stuck
        (ACCEPTED, True, False),  # accepted us and said nothing: stuck
        (ACCEPTED + QUEUED, True, True),
        (ACCEPTED, False, True),
        (OTHER + NAMELESS + QUEUED, True, False),
    ],
)
def test_the_kernels_table(rows: str, ours_is_open: bool, expected: bool) -> None:
    table = TABLE.format(rows)
    assert held(table, "/run/with space/qmp", ours_is_open=ours_is_open) is expected
