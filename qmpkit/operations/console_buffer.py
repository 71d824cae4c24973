"""The text of a console: what is kept of it, and who waits for more."""

from __future__ import annotations

import unicodedata

import trio

from qmpkit.errors import MachineDied, MachineGone
from qmpkit.operations._protocols import Verdict
from qmpkit.operations.errors import ConsoleEnded, end_of

__all__ = ["Feed", "Ring", "last_lines"]


class Ring:
    """The last `keep` bytes of a stream, addressed by their offset in the whole stream."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.base = 0  # offset of the oldest byte kept
        self._kept = bytearray()

    @property
    def end(self) -> int:
        """Offset after the newest byte: the length of the whole stream."""
        return self.base + len(self._kept)

    def add(self, data: bytes) -> None:
        """Append; the oldest bytes are dropped when there are more than `keep`."""
        self._kept += data
        excess = len(self._kept) - self.keep
        if excess > 0:
            # A bytearray drops its front by moving a pointer, so this is no copy.
            del self._kept[:excess]
            self.base += excess

    def copy(self, start: int, end: int) -> bytes:
        """The bytes from *start* to *end* as far as they are kept."""
        with memoryview(self._kept) as kept:
            return bytes(kept[max(start - self.base, 0) : max(end - self.base, 0)])

    def find(self, needle: bytes, start: int, end: int) -> int | None:
        """Offset of the first *needle* that lies wholly between *start* and *end*."""
        low, high = max(start - self.base, 0), max(end - self.base, 0)
        at = self._kept.find(needle, low, high)
        return None if at < 0 else self.base + at


class Feed:
    """A ring that tells its readers when it has grown or ended."""

    def __init__(self, name: str, channel: str, keep: int, verdict: Verdict | None = None) -> None:
        self.name = name
        self._verdict = verdict
        self.channel = channel
        self.ring = Ring(keep)
        self.ended = False
        self._waiting = trio.lowlevel.ParkingLot()

    def add(self, data: bytes) -> None:
        self.ring.add(data)
        self._waiting.unpark_all()

    def end(self) -> None:
        self.ended = True
        self._waiting.unpark_all()

    async def changed(self) -> None:
        """Wait for more text or the end; callers look first, and again afterwards."""
        if self.ended:
            await trio.lowlevel.checkpoint()
        else:
            await self._waiting.park()

    async def ended_before(self, asked: str) -> MachineGone | MachineDied:
        """The error for who wanted something of a console that has ended."""
        gone = ConsoleEnded(self.name, self.channel, asked, last_lines(self.ring))
        return await end_of(gone, self._verdict)


def last_lines(ring: Ring, count: int = 15) -> str:
    """The last lines of a console for an error message: nothing a terminal would obey."""
    tail = ring.copy(ring.end - 4000, ring.end).decode("utf-8", "replace")
    lines = [line for line in tail.replace("\r", "").split("\n") if line.strip()]
    return "\n".join(_harmless(line) for line in lines[-count:])


def _harmless(line: str) -> str:
    """Control characters made visible, so that an error message cannot move the cursor."""
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) == "Cc" and char != "\t" else char
        for char in line
    )
