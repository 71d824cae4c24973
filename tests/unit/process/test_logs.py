"""Logs and tails keep to their bounds."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from qmpkit.process import logs
from qmpkit.process.limits import NOFILE_CEILING, raise_nofile
from qmpkit.process.logs import (
    BACKLOG_LIMIT,
    BoundedLog,
    StderrLog,
    Tail,
    bounded_log,
    writing,
)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_a_tail_keeps_the_last_lines() -> None:
    tail = Tail(lines=3)
    for number in range(100):
        tail.feed(f"line {number}\n".encode())
    tail.feed(b"half")
    assert str(tail) == "line 98\nline 99\nhalf"


def test_a_tail_never_grows() -> None:
    tail = Tail(lines=3, limit=100)
    tail.feed(b"x" * 1_000_000)
    tail.feed(b"\xff\n")
    assert str(tail) == "x" * 98 + "\N{REPLACEMENT CHARACTER}\n"


async def test_a_log_holds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with bounded_log(path) as log:
        for number in range(1000):
            log.write(f"{number}\n".encode())
    assert path.read_text() == "".join(f"{number}\n" for number in range(1000))
    assert path.stat().st_mode & 0o777 == 0o600
    assert log.error is None
    assert log.dropped == 0


async def test_a_log_is_continued(tmp_path: Path) -> None:
    for word in (b"one ", b"two"):
        async with bounded_log(tmp_path / "log") as log:
            log.write(word)
    assert (tmp_path / "log").read_bytes() == b"one two"


async def test_a_log_rotates_once_and_stays_in_its_bounds(tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    async with bounded_log(path, limit=1000) as log:
        for number in range(500):
            log.write(f"line {number:4}\n".encode())
            if number % 7 == 0:
                await trio.lowlevel.checkpoint()
    assert path.read_bytes().endswith(b"line  499\n")
    assert path.stat().st_size + old.stat().st_size <= 1000
    assert entries(tmp_path) == [path, old]
    both = old.read_bytes() + path.read_bytes()
    lines = both.decode().splitlines()[1:]  # the first one may be cut
    assert lines == [f"line {number:4}" for number in range(500 - len(lines), 500)]


async def test_one_write_larger_than_the_limit(tmp_path: Path) -> None:
    async with bounded_log(tmp_path / "log", limit=1000) as log:
        log.write(b"x" * 10_000)
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= 1000


async def test_a_disk_that_fails_costs_the_log_and_nothing_else(tmp_path: Path) -> None:
    async with bounded_log(tmp_path / "no" / "log") as log:
        log.write(b"lost")
    assert isinstance(log.error, FileNotFoundError)
    assert log.dropped == 4


async def test_a_disk_that_cannot_follow_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FLUSH_GRACE", 0.1)
    release = threading.Event()
    with monkeypatch.context() as slow:
        slow.setattr(BoundedLog, "_append", lambda self, data: release.wait())
        async with bounded_log(tmp_path / "log") as log:
            log.write(b"first")
            await trio.sleep(0.05)  # the writer is stuck now
            chunk = b"x" * 65536
            for _ in range(2 * BACKLOG_LIMIT // len(chunk)):
                log.write(chunk)
            assert log.dropped == BACKLOG_LIMIT
    release.set()


def test_raising_the_limit_of_open_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        raised = raise_nofile()
        assert raised == min(before[1], NOFILE_CEILING)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (raised, before[1])
        assert raise_nofile() == raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class _Streams:
    """Two descriptors that stand for stdout and stderr, both of them a log that is appended to."""

    def __init__(self, path: Path) -> None:
        self.out, self.err = (os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in "12")

    def close(self) -> None:
        os.close(self.out)
        os.close(self.err)


@pytest.fixture
def streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Streams]:
    found = _Streams(tmp_path / "log")
    monkeypatch.setattr(logs, "_STDOUT", found.out)
    monkeypatch.setattr(logs, "_STDERR", found.err)
    yield found
    found.close()


async def test_what_goes_to_stderr_past_the_log_is_bounded_too(
    tmp_path: Path, streams: _Streams
) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    os.write(streams.err, b"x" * 600)
    async with writing(StderrLog(path, limit=1000)) as log:
        log.write(b"one\n")
    assert (old.read_bytes(), path.read_bytes()) == (b"x" * 600, b"one\n")
    os.write(streams.out, b"out\n")
    os.write(streams.err, b"a traceback\n")
    assert path.read_bytes() == b"one\nout\na traceback\n", "it goes on in the new file"
    assert log.error is None


async def test_a_stderr_that_is_no_file_of_ours_is_only_written_to(
    tmp_path: Path, streams: _Streams
) -> None:
    async with writing(StderrLog(None, limit=1000)) as log:
        log.write(b"y" * 3000)
    assert (tmp_path / "log").read_bytes() == b"y" * 3000
    assert entries(tmp_path) == [tmp_path / "log"]
