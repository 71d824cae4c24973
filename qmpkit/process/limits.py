"""Limits: what a child may use, and how many files we may have open ourselves."""

from __future__ import annotations

import math
import resource

import attrs

__all__ = ["Limits", "raise_nofile"]

NOFILE_CEILING = 1 << 20
"""Some hosts allow a thousand million; programs that walk all numbers then crawl."""


@attrs.frozen(kw_only=True)
class Limits:
    """What one short program may use; None is no limit.

    `cpu`: seconds of processor time, all its threads together, rounded up to a whole one.
    `memory`: bytes it may allocate (private writable memory, RLIMIT_DATA: the address
    space would count what the C library only sets aside for each thread).
    `file_size`: bytes that any file it writes may grow to.
    `time`: seconds from start to end.

    A limit of this process that is lower already stays.
    """

    cpu: float | None = None
    memory: int | None = None
    file_size: int | None = None
    time: float | None = None

    def rlimits(self) -> list[tuple[int, int, int]]:
        """`(which, soft, hard)` for setrlimit(2); `time` is not the kernel's to watch."""
        found = []
        if self.cpu is not None:
            seconds = math.ceil(self.cpu)
            # SIGXCPU tells what happened; at the hard limit it would be an anonymous SIGKILL.
            found.append((resource.RLIMIT_CPU, seconds, seconds + 1))
        if self.memory is not None:
            found.append((resource.RLIMIT_DATA, self.memory, self.memory))
        if self.file_size is not None:
            found.append((resource.RLIMIT_FSIZE, self.file_size, self.file_size))
        return found


def raise_nofile() -> int:
    """Raise the soft limit of open files to the hard one (1048576 at most); returns what holds.

    A machine costs about ten descriptors here, and the usual soft limit is 1024.
    Children inherit the new limit: QEMU uses poll, never select.  Cheap and
    harmless to repeat.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = NOFILE_CEILING if hard == resource.RLIM_INFINITY else min(hard, NOFILE_CEILING)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
