"""A terminal on the console: real pseudo-terminals, pipes and files."""

from __future__ import annotations

import os
import pty
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MemoryReceiveStream, MemorySendStream

from qmpkit.operations.console import Console
from qmpkit.operations.console_attach import AttachEnd

Guest = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


@asynccontextmanager
async def booted() -> AsyncIterator[tuple[Guest, Console]]:
    guest, host = trio.testing.memory_stream_pair()
    console = Console(host, name="web", keep=64 * 1024)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(console.run)
        yield guest, console
        nursery.cancel_scope.cancel()


@attrs.define
class Terminal:
    """A pseudo-terminal: `screen` is what a person sees and types on, `fd` what we get."""

    screen: int
    fd: int

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.fd)[tty.LFLAG] & termios.ICANON

    async def shown(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            await trio.lowlevel.wait_readable(self.screen)
            data += os.read(self.screen, count)
        return data


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    screen, fd = pty.openpty()
    terminal = Terminal(screen, fd)
    yield terminal
    for end in (terminal.screen, terminal.fd):
        if end >= 0:
            os.close(end)


@pytest.fixture
def nothing() -> Iterator[int]:
    with Path("/dev/null").open("rb") as null:
        yield null.fileno()


@asynccontextmanager
async def attached(
    console: Console, stdin: int, stdout: int, **options: bool | bytes
) -> AsyncIterator[list[AttachEnd]]:
    """Attach in a task of its own; its result is in the list after the block."""
    ends: list[AttachEnd] = []

    async def attaching() -> None:
        ends.append(await console.attach(stdin, stdout, **options))  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attaching)
        yield ends


async def test_keys_and_output_travel_and_the_escape_key_ends_it(terminal: Terminal) -> None:
    before = termios.tcgetattr(terminal.fd)
    async with booted() as (guest, console):
        async with attached(console, terminal.fd, terminal.fd) as ends:
            await trio.testing.wait_all_tasks_blocked()
            assert terminal.is_raw
            os.write(terminal.screen, b"ls\x03")
            assert await guest.receive_some() == b"ls\x03"
            await guest.send_all(b"bin\r\n")
            assert await terminal.shown(5) == b"bin\r\n"
            os.write(terminal.screen, b"x\x1dthrown away")
            assert await guest.receive_some() == b"x"
        assert ends == [AttachEnd.ESCAPE]
    assert termios.tcgetattr(terminal.fd) == before
    assert os.get_blocking(terminal.fd)


async def test_the_machines_end_ends_it_after_the_last_output(terminal: Terminal) -> None:
    async with booted() as (guest, console):
        async with attached(console, terminal.fd, terminal.fd) as ends:
            await trio.testing.wait_all_tasks_blocked()
            await guest.send_all(b"Power down\r\n")
            await guest.aclose()
        assert ends == [AttachEnd.MACHINE]
        assert await terminal.shown(12) == b"Power down\r\n"
    assert not terminal.is_raw


async def test_cancelled_or_failed_the_terminal_is_restored(terminal: Terminal) -> None:
    async with booted() as (_, console):
        with trio.CancelScope() as scope:
            async with attached(console, terminal.fd, terminal.fd):
                await trio.testing.wait_all_tasks_blocked()
                assert terminal.is_raw
                scope.cancel()
        assert not terminal.is_raw
        with pytest.raises(OSError, match="Bad file descriptor"):
            await console.attach(terminal.fd, 12345)
        assert not terminal.is_raw


async def test_a_terminal_that_goes_away_ends_it(terminal: Terminal) -> None:
    async with booted() as (_, console):
        async with attached(console, terminal.fd, terminal.fd) as ends:
            await trio.testing.wait_all_tasks_blocked()
            os.close(terminal.screen)
            terminal.screen = -1
        assert ends == [AttachEnd.HANGUP]


async def test_pipes_the_end_of_the_input_is_not_the_end(terminal: Terminal) -> None:
    from_us, stdin = os.pipe()
    stdout, to_us = os.pipe()
    async with booted() as (guest, console):
        await guest.send_all(b"early ")
        await trio.testing.wait_all_tasks_blocked()
        async with attached(console, from_us, to_us, replay=True) as ends:
            os.write(stdin, b"poweroff\n")
            os.close(stdin)
            assert await guest.receive_some() == b"poweroff\n"
            await trio.testing.wait_all_tasks_blocked()
            assert ends == []
            await guest.send_all(b"bye")
            await guest.aclose()
        assert ends == [AttachEnd.MACHINE]
    assert os.read(stdout, 100) == b"early bye"
    assert os.get_blocking(from_us)
    assert os.get_blocking(to_us)
    for fd in (from_us, stdout, to_us):
        os.close(fd)


async def test_files(tmp_path: Path) -> None:
    typed, shown = tmp_path / "in", tmp_path / "out"
    typed.write_bytes(b"date\n")
    shown.write_bytes(b"kept;")
    with typed.open("rb") as stdin, shown.open("ab") as stdout:
        async with (
            booted() as (guest, console),
            attached(console, stdin.fileno(), stdout.fileno()) as ends,
        ):
            assert await guest.receive_some() == b"date\n"
            await guest.send_all(b"today")
            await guest.aclose()
    assert ends == [AttachEnd.MACHINE]
    assert shown.read_bytes() == b"kept;today"


async def test_nobody_reads_the_output_any_more(nothing: int) -> None:
    stdout, to_us = os.pipe()
    os.close(stdout)
    async with booted() as (guest, console):
        async with attached(console, nothing, to_us) as ends:
            await guest.send_all(b"x")
        assert ends == [AttachEnd.HANGUP]
    os.close(to_us)


async def test_a_terminal_that_stands_still_holds_nobody(terminal: Terminal) -> None:
    """Nobody reads the screen: the guest goes on, and the viewer is told what it missed."""
    async with booted() as (guest, console), attached(console, terminal.fd, terminal.fd):
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(20):
            await guest.send_all(b"." * 10_000)
            await trio.testing.wait_all_tasks_blocked()
        assert console.dropped == 200_000 - 64 * 1024
        shown = b""
        while b" bytes of output were not shown]" not in shown:
            shown += await terminal.shown(1)
        os.write(terminal.screen, b"\x1d")


async def test_no_escape_key_and_a_wrong_one(terminal: Terminal) -> None:
    async with booted() as (guest, console):
        with pytest.raises(ValueError, match="one byte"):
            await console.attach(terminal.fd, terminal.fd, escape=b"~.")
        async with attached(console, terminal.fd, terminal.fd, escape=b""):
            await trio.testing.wait_all_tasks_blocked()
            os.write(terminal.screen, b"\x1d")
            assert await guest.receive_some() == b"\x1d"
            await guest.aclose()


async def test_the_masters_end_of_a_terminal_is_not_opened_again(
    terminal: Terminal, nothing: int
) -> None:
    """Opening /dev/ptmx again would make another pair, and the text would go nowhere."""
    tty.setraw(terminal.fd)
    async with booted() as (guest, console), attached(console, nothing, terminal.screen):
        await guest.send_all(b"out")
        await guest.aclose()
    assert os.read(terminal.fd, 10) == b"out"
