"""Which way of disk I/O works on this host.  Blocking: a system call or two."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from functools import cache

from qmpkit.spec.block import Aio, Cache

__all__ = ["best_aio", "io_uring_works"]

_IO_URING_SETUP = 425  # the same on every architecture
_PARAMETERS = 120  # bytes of struct io_uring_params
_DIRECT = ("none", "directsync")


@cache
def io_uring_works() -> bool:
    """Whether the kernel gives this process a ring: containers and a sysctl may forbid it."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_IO_URING_SETUP, 1, ctypes.create_string_buffer(_PARAMETERS))
    if fd < 0:
        return False
    os.close(fd)
    return True


def best_aio(cache: Cache, offered: Iterable[str], *, ring: bool) -> Aio:
    """What `aio = "auto"` is for a disk: pure.

    *offered*: what the binary was built with; *ring*: `io_uring_works()`.
    """
    offered = set(offered)
    if ring and "io_uring" in offered:
        return "io_uring"
    if cache in _DIRECT and "native" in offered:
        return "native"
    return "threads"
