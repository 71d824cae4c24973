"""Limits of our own process."""

from __future__ import annotations

import resource

__all__ = ["raise_nofile"]

NOFILE_CEILING = 1 << 20
"""Some hosts allow a thousand million; programs that walk all numbers then crawl."""


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
