"""A guest that writes to two disks without pause, and notes when each write had come back.

A boot sector: it has the BIOS write a sector to the first disk and to the second by turns,
and puts the processor's clock into a ring in its memory.  What is looked at is that memory,
so nothing but the disks is between the guest's writes and what they had to wait for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["LOOK", "Watch", "Writes", "boot_disk"]

_DISK_SIZE = 16 << 20
_COUNT, _RING, _SLOTS = 0x1000, 0x10000, 0x4000
LOOK = {"val": _COUNT, "size": _RING + 4 * _SLOTS - _COUNT}
"""What of its memory is to be saved (`pmemsave`)."""

_BLUR = 0.002  # seconds
_TORN = 64  # slots that may be written while the memory is saved

_CODE = (
    "fa 31 c0 8e d8 8e d0 bc 00 7c fb",  # cli; ds, ss: 0; sp: 0x7c00; sti
    "66 31 c0 66 a3 00 10",  # mov dword [COUNT], 0
    "b8 00 10 8e c0",  # mov es, RING >> 4
    "bd 80 00",  # mov bp, 0x80: the first disk
    # again:
    "89 ea be 49 7c b8 00 43 cd 13",  # mov dx, bp; mov si, packet; write by int 0x13
    "72 20",  # jc stop
    "0f 31 66 0f ac d0 08",  # rdtsc; shrd eax, edx, 8
    "8b 1e 00 10 81 e3 ff 3f c1 e3 02",  # mov bx, [COUNT]; and bx, SLOTS - 1; shl bx, 2
    "26 66 89 07",  # mov es:[bx], eax
    "66 ff 06 00 10",  # inc dword [COUNT]
    "83 f5 01 eb d4",  # xor bp, 1; jmp again
    "f4 eb fd",  # stop: hlt; jmp stop
    "10 00 01 00 00 7c 00 00 08 00 00 00 00 00 00 00",  # packet: one sector, to the eighth
)


def boot_disk() -> bytes:
    """A raw disk that a BIOS boots; the other one is as long, and empty."""
    sector = b"".join(map(bytes.fromhex, _CODE)).ljust(510, b"\0") + b"\x55\xaa"
    return sector.ljust(_DISK_SIZE, b"\0")


@dataclass(frozen=True)
class Writes:
    """`count` writes had come back at the time `at`; the clock at the last, in 256 cycles."""

    at: float
    count: int
    ticks: tuple[int, ...]

    @classmethod
    def of(cls, memory: bytes, at: float) -> Writes:
        (count,) = struct.unpack_from("<I", memory)
        slots = struct.unpack_from(f"<{_SLOTS}I", memory, _RING - _COUNT)
        first = max(count - _SLOTS + _TORN, 0)
        return cls(at, count, tuple(slots[at % _SLOTS] for at in range(first, count)))


class Watch:
    """The guest's clock in our time, known by two looks that lie some time apart."""

    def __init__(self, first: Writes, last: Writes) -> None:
        self._last = last
        self._tick = (last.at - first.at) / (last.ticks[-1] - first.ticks[-1])
        self.quiet = self.gap(last, first.at, last.at - _BLUR)
        """Seconds of the longest gap between two writes from the one look to the other."""

    def shows(self, seen: Writes, ended: float) -> bool:
        """Whether the guest has written again since then."""
        return bool(seen.ticks) and self._time(seen.ticks[-1]) > ended + _BLUR

    def gap(self, seen: Writes, begun: float, ended: float) -> float:
        """Seconds of the longest gap between two writes that the time from *begun* to *ended* has.

        Or two milliseconds around it, for the two clocks are compared no better.
        """
        times = [self._time(tick) for tick in seen.ticks]
        if times[0] > begun:
            raise SystemExit(f"{len(times)} writes do not go back {seen.at - begun:.3f} s")
        pairs = pairwise(times)
        return max(b - a for a, b in pairs if b > begun - _BLUR and a < ended + _BLUR)

    def _time(self, tick: int) -> float:
        return self._last.at + (tick - self._last.ticks[-1]) * self._tick
