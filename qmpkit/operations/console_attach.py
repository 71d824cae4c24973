"""A person's terminal on a guest's console."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum

import trio

from qmpkit.errors import MachineDied, MachineGone
from qmpkit.operations._terminal import FdInput, FdOutput, Hangup, raw_mode
from qmpkit.operations.console_reader import Reader
from qmpkit.operations.errors import OutputLost

__all__ = ["AttachEnd", "attach"]

Send = Callable[[bytes], Awaitable[None]]


class AttachEnd(Enum):
    """What ended an interactive session."""

    ESCAPE = "escape"  # the escape key was typed
    MACHINE = "machine"  # the machine ended; all its output has been shown
    HANGUP = "hangup"  # the terminal has gone, or nobody reads the output any more


async def attach(reader: Reader, send: Send, stdin: int, stdout: int, escape: bytes) -> AttachEnd:
    """Copy both ways until one of `AttachEnd` happens; see `Console.attach`."""
    if len(escape) > 1:
        raise ValueError(f"the escape key is one byte, not {escape!r}")
    ends: list[AttachEnd] = []
    with raw_mode(stdin), FdInput(stdin) as source, FdOutput(stdout) as sink:
        async with trio.open_nursery() as nursery:

            async def half(copy: Callable[[], Awaitable[AttachEnd | None]]) -> None:
                if (end := await copy()) is not None:
                    ends.append(end)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(half, lambda: _show(reader, sink))
            nursery.start_soon(half, lambda: _type(source, send, escape))
    return ends[0]


async def _show(reader: Reader, sink: FdOutput) -> AttachEnd:
    try:
        while data := await _read(reader):
            await sink.write_all(data)
    except Hangup:
        return AttachEnd.HANGUP
    return AttachEnd.MACHINE


async def _read(reader: Reader) -> bytes:
    try:
        return await reader.read()
    except OutputLost as lost:
        return f"\r\n[{lost.dropped} bytes of output were not shown]\r\n".encode()


async def _type(source: FdInput, send: Send, escape: bytes) -> AttachEnd | None:
    """None when a piped input has ended: the output goes on without it."""
    try:
        while data := await source.read():
            typed, escaped, _ = data.partition(escape) if escape else (data, b"", b"")
            if typed:
                await send(typed)
            if escaped:
                return AttachEnd.ESCAPE
    except Hangup:
        return AttachEnd.HANGUP
    except (MachineGone, MachineDied):
        return None  # the other half shows the rest of the output, then ends us
    return AttachEnd.HANGUP if source.is_terminal else None
