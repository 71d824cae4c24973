"""Which process is meant, so that a number given to another one is never taken for it.

A process number is given again, within minutes on a busy host.  Together with the
time of the process's start and the boot of the host it is not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import attrs

__all__ = ["Identity", "Standing", "boot_id", "look_for"]

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class Standing(Enum):
    """What has become of a process that was written down."""

    ALIVE = "alive"
    GONE = "gone"  # nobody has its number
    REUSED = "its number is another process's"
    ZOMBIE = "a zombie"  # dead, and its parent has not asked how
    REBOOTED = "the host was rebooted"

    @property
    def lives(self) -> bool:
        """True for ALIVE alone."""
        return self is Standing.ALIVE


@cache
def boot_id() -> str:
    """The number of this boot of the host: a random UUID that the kernel makes."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@attrs.frozen
class Identity:
    """One process of one boot; `started` is /proc/PID/stat's field 22, in ticks since the boot."""

    boot: str
    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """That of a process that is there, dead or alive; None when it is not."""
        seen = _stat(pid)
        return None if seen is None else cls(boot_id(), pid, seen[1])

    @property
    def age(self) -> float:
        """Seconds since the process was started; only for one of this boot."""
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - self.started / _CLOCK_TICKS)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it is written down."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Identity:
        """The reverse of `to_dict`; KeyError, TypeError or ValueError when it is not that."""
        boot, pid, started = plain["boot"], plain["pid"], plain["started"]
        if type(boot) is not str or type(pid) is not int or type(started) is not int or pid < 1:
            raise ValueError(f"this is no identity of a process: {plain!r}")
        return cls(boot, pid, started)


def look_for(identity: Identity) -> tuple[Standing, int | None]:
    """What has become of the process, with a pidfd of it when it is alive.

    Does three quick system calls.  Raises OSError when the limit of descriptors is
    reached, or this kernel has no pidfds.
    """
    if identity.boot != boot_id():
        return Standing.REBOOTED, None
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return Standing.GONE, None
    # After the pidfd, not before: had the number been given away in between, the start
    # would differ here, for nothing new can have started in the past.
    standing = _standing(identity)
    if standing.lives:
        return standing, pidfd
    os.close(pidfd)
    return standing, None


def _standing(identity: Identity) -> Standing:
    seen = _stat(identity.pid)
    if seen is None:
        return Standing.GONE
    state, started = seen
    if started != identity.started:
        return Standing.REUSED
    return Standing.ZOMBIE if state in "ZX" else Standing.ALIVE


def _stat(pid: int) -> tuple[str, int] | None:
    """State and start of a process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 (at every start)
            text = file.read().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may hold anything.
    words = text.rpartition(")")[2].split()
    return words[0], int(words[19])
