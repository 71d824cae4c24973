"""What both sides of `farm.start_many` have around them, so that neither pays for what went before.

In a virtual machine the first touch of a page is a fault of its host too, which costs more
than all else that QEMU does with the page, and hits whoever comes first; and what lies free for
a second or two goes back to that host, which hits whoever takes longer.  So the memory is had
before, in huge pages, and given back bit by bit while machines start.  (For the same reason
what a side writes to a disk is left until all have run: ext4 looks at every file that was
removed lately before it makes a new one.)
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_EACH = 30 << 20  # bytes of a QEMU, and half as much again

_HOLDER = """
import mmap, sys, time

size, parts = int(sys.argv[1]), []
for _ in range(8):
    part = mmap.mmap(-1, size // 8, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    part.madvise(mmap.MADV_HUGEPAGE)
    for at in range(0, len(part), mmap.PAGESIZE):
        part[at] = 1
    parts.append(part)
parts.pop().close()
print("ready", flush=True)
while parts:
    time.sleep(0.3)  # sooner than the machines of any side take it
    parts.pop().close()
"""


@contextmanager
def memory_at_hand(machines: int) -> Iterator[None]:
    """Within: as much memory as so many machines take, or half of what is free, was had lately."""
    free = os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE
    size = min(machines * _EACH, free // 2)
    side = [sys.executable, "-c", _HOLDER, str(size)]
    with subprocess.Popen(side, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline()
            yield
        finally:
            holder.kill()
