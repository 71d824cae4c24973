"""What the kernel lets this process do."""

from __future__ import annotations

import os
from pathlib import Path

from qmpkit.host.kvm import read_text

__all__ = ["CAP_IPC_LOCK", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_NICE", "capable"]

CAP_IPC_LOCK = 14
CAP_SYS_CHROOT = 18
CAP_SYS_ADMIN = 21
CAP_SYS_NICE = 23


def capable(root: Path, capability: int) -> bool:
    """Whether this process has a capability; root in a container may lack it.  Blocking."""
    for line in read_text(root / "proc/self/status", 8192).splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return os.geteuid() == 0
