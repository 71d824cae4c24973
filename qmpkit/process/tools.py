"""Short programs (`qemu-img`, …): run to their end, with their output in bounds."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing

import attrs
import trio

from qmpkit._trio import service_nursery
from qmpkit.process.child import DRAIN_GRACE, Child, child
from qmpkit.process.escalate import stop_child
from qmpkit.process.limits import Limits
from qmpkit.process.status import ExitStatus

__all__ = ["Completed", "run"]

OUTPUT_LIMIT = 16 << 20
"""Bytes kept of each of stdout and stderr."""

TERM_GRACE = 0.5
"""Seconds a program whose time is up has to end by itself."""


@attrs.frozen
class Completed:
    """What a program did: its status and output.

    `truncated`: more output came than was kept.  `timed_out`: it was killed for its time.
    """

    argv: tuple[str, ...]
    status: ExitStatus
    stdout: bytes
    stderr: bytes
    truncated: bool = False
    timed_out: bool = False

    @property
    def out(self) -> str:
        """stdout as text; what is not UTF-8 is replaced."""
        return self.stdout.decode(errors="replace")

    @property
    def err(self) -> str:
        """stderr as text; what is not UTF-8 is replaced."""
        return self.stderr.decode(errors="replace")


class _Capture:
    """A pipe for the output of a program; keeps the first `limit` bytes of it."""

    def __init__(self, limit: int, tell: Callable[[bytes], object] | None = None) -> None:
        self.data = bytearray()
        self.truncated = False
        self.done = trio.Event()
        self._limit = limit
        self._tell = tell
        reader, self.writer = os.pipe()
        self._stream = trio.lowlevel.FdStream(reader)

    def close_writer(self) -> None:
        """Give up our copy of the writing end, or the reader would never see its end."""
        writer, self.writer = self.writer, -1
        if writer >= 0:
            os.close(writer)

    async def run(self) -> None:
        async for chunk in self._stream:
            if self._tell is not None:
                self._tell(bytes(chunk))
            room = self._limit - len(self.data)
            self.data += chunk[:room]
            self.truncated |= len(chunk) > room
        self.done.set()

    async def aclose(self) -> None:
        self.close_writer()
        await self._stream.aclose()


async def run(
    argv: Sequence[str],
    *,
    input: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    fds: Mapping[int, int] | None = None,
    output_limit: int = OUTPUT_LIMIT,
    on_stdout: Callable[[bytes], object] | None = None,
    limits: Limits | None = None,
    name: str = "",
) -> Completed:
    """Run *argv* to its end with *input* on stdin; a failure status is returned, not raised.

    Output beyond *output_limit* bytes (of stdout and stderr each, 16 MiB) is
    read and dropped.  *on_stdout* sees each piece of stdout as it comes; it must not
    block.  A program that meets one of *limits* fails by its status: killed by a
    signal, or by what it says when it can have no more.
    Other parameters and errors are those of `child()`.
    Cancellation kills the program.
    """
    async with AsyncExitStack() as stack:
        out = await stack.enter_async_context(aclosing(_Capture(output_limit, on_stdout)))
        err = await stack.enter_async_context(aclosing(_Capture(output_limit)))
        mapping = {0: _stdin(stack, input), 1: out.writer, 2: err.writer, **(fds or {})}
        process = await stack.enter_async_context(
            child(argv, fds=mapping, env=env, cwd=cwd, limits=limits, name=name)
        )
        services = await stack.enter_async_context(service_nursery())
        for capture in (out, err):
            capture.close_writer()
            services.start_soon(capture.run)
        status, timed_out = await _ended(process, limits)
        # The program's group is dead: only a process that left it could hold the pipes open.
        with trio.move_on_after(DRAIN_GRACE):
            await out.done.wait()
            await err.done.wait()
    truncated = out.truncated or err.truncated
    return Completed(tuple(argv), status, bytes(out.data), bytes(err.data), truncated, timed_out)


async def _ended(process: Child, limits: Limits | None) -> tuple[ExitStatus, bool]:
    """How it ended, and whether that was because its time was up."""
    seconds = math.inf if limits is None or limits.time is None else limits.time
    with trio.move_on_after(seconds):
        return await process.wait(), False
    return await stop_child(process, term_grace=TERM_GRACE), True


def _stdin(stack: AsyncExitStack, data: bytes) -> int:
    """A file in memory with *data*: unlike a pipe it needs nobody to feed it."""
    fd = os.memfd_create("qmpkit-stdin")
    stack.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
