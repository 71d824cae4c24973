"""What both sides of `farm.start_many` do first, so that neither pays for what went before.

In a virtual machine the first touch of a page is a fault of its host too, which costs more
than all else that QEMU does with the page, and hits whoever comes first.  (For the same
reason what a side writes to a disk is left until all have run: ext4 looks at every file that
was removed lately before it makes a new one.)
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

_EACH = 30 << 20  # bytes of a QEMU, and half as much again


def take_memory(machines: int) -> None:
    """Have had as much memory as so many machines will take, or half of what is free."""
    free = os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE
    program = (
        f"import mmap; mmap.mmap(-1, {min(machines * _EACH, free // 2)}, "
        "flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)  # which gives it back as it ends
