"""The command run as a process: by a person at a (pseudo) terminal, or with pipes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

__all__ = ["COMMAND", "Terminal", "ask", "on", "piped", "qmp", "rest", "said", "terminal"]

COMMAND = [sys.executable, "-m", "qmpkit.cli"]
_PATIENCE = 25  # seconds for one thing to be shown


def on(qemu: str, *sets: str) -> list[str]:
    """The options that choose the QEMU and TCG."""
    return [f"--set={word}" for word in (f"qemu={qemu}", "accel=tcg", *sets)]


class Terminal:
    """A command's controlling terminal, seen from the person's side."""

    def __init__(self, master: int, process: trio.Process) -> None:
        self.master = master
        self.process = process
        self.shown = b""
        self._place = 0

    async def expect(self, text: str) -> None:
        """Wait until *text* is shown, after what was expected before."""
        wanted = text.encode()
        with trio.move_on_after(_PATIENCE) as waiting:
            while (at := self.shown.find(wanted, self._place)) < 0:
                await trio.lowlevel.wait_readable(self.master)
                try:
                    self.shown += os.read(self.master, 65536)
                except OSError:  # EIO: the command has ended
                    waiting.cancel()
                    await trio.lowlevel.checkpoint()
        if waiting.cancelled_caught:
            pytest.fail(f"{text!r} was not shown in {self.shown[self._place :]!r}")
        self._place = at + len(wanted)

    async def type(self, keys: bytes) -> None:
        os.write(self.master, keys)
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def terminal(*argv: str, stderr: int | None = None) -> AsyncIterator[Terminal]:
    master, slave = pty.openpty()
    process = await trio.lowlevel.open_process(
        ["setsid", "--ctty", *COMMAND, *argv],
        stdin=slave,
        stdout=slave,
        stderr=slave if stderr is None else stderr,
    )
    os.close(slave)
    person = Terminal(master, process)
    try:
        yield person
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True), trio.move_on_after(5):
            await process.wait()
        if person.master >= 0:
            os.close(person.master)


@asynccontextmanager
async def piped(*argv: str) -> AsyncIterator[trio.Process]:
    process = await trio.lowlevel.open_process(
        [*COMMAND, *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True), trio.move_on_after(5):
            await process.wait()


async def said(process: trio.Process, text: str) -> str:
    """Read stderr up to *text*; returns all that was read."""
    assert process.stderr is not None
    heard = b""
    while text.encode() not in heard:
        data = await process.stderr.receive_some()
        assert data, f"{text!r} was not said in {heard.decode()}"
        heard += data
    return heard.decode()


async def rest(stream: trio.abc.ReceiveStream | None) -> str:
    assert stream is not None
    return b"".join([bytes(chunk) async for chunk in stream]).decode()


def qmp(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "qmp", str(path), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def ask(path: Path, *words: str) -> Any:
    ran = qmp(path, *words, "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("\n") == 1
    return json.loads(ran.stdout)
