"""What both sides of the hotplug metrics say to the tiny guest on its console, and hear.

Its kernel tells of a disk there, so nothing in it looks again and again while time is taken.
Neither side shares more than this: no program of a peer imports qmpkit.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

__all__ = ["DISK_SEEN", "GONE", "PROMPT", "READY", "SET_UP", "STARTED", "gone", "slowing", "there"]

PROMPT = "tiny# "

# Drivers are there before the first plug; nobody asks for a plugged NIC's address.
SET_UP = (
    "until [ -e /run/settled ]; do usleep 20000; done; modprobe -a virtio_blk virtio_net; "
    ": >/etc/nic; dmesg -n 6; echo se''t up"
)
READY = "set up"
DISK_SEEN = "[vda] "
"""Printed by the kernel's driver of a disk, when it has found the disk's size."""

STARTED = "it is there"
GONE = "it is gone"


def there(place: str) -> str:
    """A line for the guest's shell, to which it answers STARTED once it has *place*."""
    return f"until [ -e {place} ]; do usleep 5000; done; echo it i''s there"


def gone(place: str) -> str:
    """A line to which it answers GONE when it has *place* no more, at once; else nothing good."""
    return f"[ -e {place} ] && echo it i''s kept || echo it i''s gone"


def slowing(seconds: Sequence[float]) -> float:
    """How much longer the last ten took than the first ten."""
    return statistics.median(seconds[-10:]) / statistics.median(seconds[:10])
