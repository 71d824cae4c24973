"""The guest's serial console: read, awaited, written to, attached to a terminal."""

from __future__ import annotations

from contextlib import nullcontext

import trio

from qmpkit.operations._protocols import Verdict
from qmpkit.operations.console_attach import AttachEnd, attach
from qmpkit.operations.console_buffer import Feed, last_lines
from qmpkit.operations.console_reader import Chunks, Reader
from qmpkit.operations.patterns import Match, Pattern
from qmpkit.process.logs import BoundedLog, writing

__all__ = ["Console"]

_READ_SIZE = 64 * 1024
# Room for the longest match that is searched for, several times over.
_LEAST_KEPT = 64 * 1024
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)


class Console:
    """The host's end of one serial console.

    `run` must be running for anything to arrive: the machine does that.  It always
    reads, so that a guest never stands still because nobody looks; the last
    *keep* bytes (default 1 MiB, at least 64 KiB) stay readable, and *log* gets all.
    *verdict* tells how the machine has ended once the console has; without it a crash
    cannot be told from a shutdown.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        name: str,
        channel: str = "serial0",
        log: BoundedLog | None = None,
        keep: int = 1024 * 1024,
        verdict: Verdict | None = None,
    ) -> None:
        if keep < _LEAST_KEPT:
            raise ValueError(f"a console keeps at least {_LEAST_KEPT} bytes, not {keep}")
        self.name = name
        self.channel = channel
        self._stream = stream
        self._log = log
        self._feed = Feed(name, channel, keep, verdict)
        self._sending = trio.Lock()
        self._reader = Reader(self._feed, 0)

    async def run(self) -> None:
        """Read until the machine ends, and write the log; a service of the machine's own nursery.

        Closes the stream at its end.  Whoever waits then gets ConsoleEnded.
        """
        try:
            async with self._stream:
                if not (first := await self._receive()):  # many a console stays silent
                    return
                self._take(first)
                async with nullcontext() if self._log is None else writing(self._log):
                    try:
                        while data := await self._receive():
                            self._take(data)
                    finally:
                        self._feed.end()  # nobody waits for the log
        finally:
            self._feed.end()

    def _take(self, data: bytes) -> None:
        if self._log is not None:
            self._log.write(data)
        self._feed.add(data)

    @property
    def ended(self) -> bool:
        """True when the machine has ended; what it had printed can still be read."""
        return self._feed.ended

    @property
    def output(self) -> str:
        """All output that is kept, as text."""
        return self.output_bytes.decode("utf-8", "replace")

    @property
    def output_bytes(self) -> bytes:
        """All output that is kept: the last `keep` bytes."""
        ring = self._feed.ring
        return ring.copy(ring.base, ring.end)

    def tail(self, lines: int = 15) -> str:
        """The last lines that are not empty, with control characters made visible: for messages."""
        return last_lines(self._feed.ring, lines)

    @property
    def dropped(self) -> int:
        """How many bytes of output are no longer kept."""
        return self._feed.ring.base

    async def expect(self, *patterns: Pattern) -> Match:
        """Wait for the first of *patterns*; see `Reader.expect`.

        Starts with the machine's first output, each call continues after the match
        before.  For one task; others take a `reader()` of their own.
        """
        return await self._reader.expect(*patterns)

    def reader(self, *, replay: bool = False) -> Reader:
        """A reader with a place of its own: from now on, or with *replay* from all that is kept."""
        ring = self._feed.ring
        return Reader(self._feed, ring.base if replay else ring.end)

    def stream(self, *, replay: bool = False) -> Chunks:
        """`async for chunk in console.stream()`: output as bytes until the machine ends.

        From now on, or with *replay* from all that is kept.  A loop that falls more
        than `keep` bytes behind gets OutputLost.
        """
        return self.reader(replay=replay).stream()

    async def send(self, data: bytes) -> None:
        """Type *data*.  Waits while the guest's serial port is full, also of a paused guest.

        Raises ConsoleEnded or MachineDied when the machine has ended.  Cancelled, a part of *data*
        may have been sent.
        """
        async with self._sending:
            if self.ended:
                raise await self._feed.ended_before("input was sent")
            try:
                await self._stream.send_all(data)
            except _BROKEN as error:
                raise await self._feed.ended_before("input was sent") from error

    async def send_line(self, text: str, *, end: str = "\n") -> None:
        """Type *text* and *end*.  Firmware and boot loaders want `end="\\r"`, the Enter key."""
        await self.send((text + end).encode())

    async def attach(
        self, stdin: int = 0, stdout: int = 1, *, escape: bytes = b"\x1d", replay: bool = False
    ) -> AttachEnd:
        """Connect a terminal until *escape* (Ctrl-]) is typed or the machine ends.

        *stdin* and *stdout* are file descriptors; they stay open.  A terminal is put
        into raw mode and restored in every case but a SIGKILL of ours, so every key
        but *escape* (one byte; b"" for none) goes to the guest, Ctrl-C too.  Pipes
        and files work: the end of a piped stdin ends the input only.  With *replay*
        all kept output is shown first.  A terminal that is slow never slows the
        guest: it is told how many bytes it missed.

        Returns what ended it: AttachEnd.ESCAPE, MACHINE, or HANGUP when the terminal
        has gone.  Cancelled, the terminal is restored.
        """
        reader = self.reader(replay=replay)
        return await attach(reader, self.send, stdin, stdout, escape)

    async def _receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(_READ_SIZE))
        except _BROKEN:
            return b""  # QEMU was killed: for a console that is its end like any other
