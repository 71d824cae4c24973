"""The kernel's door to its network devices, opened for a while.  Blocking."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qmpkit.errors import HostLacks

__all__ = ["opened_netlink"]


@contextmanager
def opened_netlink(purpose: str, cure: str = "it takes CAP_NET_ADMIN") -> Iterator[Any]:
    """An `IPRoute` of pyroute2; what it refuses is HostLacks that names *purpose*.

    *cure*: for a right that we do not have.
    """
    try:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError
    except ModuleNotFoundError as missing:
        what = f"cannot {purpose}: pyroute2 is not installed"
        raise HostLacks(what, "pip install 'qmpkit[farm]'") from missing
    try:
        with IPRoute() as route:
            yield route
    except (NetlinkError, OSError) as error:
        number = error.code if isinstance(error, NetlinkError) else error.errno
        why = os.strerror(number or 0)
        denied = number in (errno.EPERM, errno.EACCES)
        raise HostLacks(f"cannot {purpose}: {why}", cure if denied else "") from error
