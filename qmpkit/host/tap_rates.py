"""How much a tap device lets through a second (tc).  Blocking; takes CAP_NET_ADMIN.

What goes to the guest waits in a token bucket; what comes from it is dropped when it is too
much, because nothing queues on the way in: TCP notices and slows down.
"""

from __future__ import annotations

import errno
from typing import Any

import attrs

from qmpkit.errors import HostLacks
from qmpkit.host.netlink import opened_netlink

__all__ = ["Rate", "set_rate"]

_OURS = 0x516B
"""Marks what is ours: the queue's number, and the filter's priority."""

_ROOT = _OURS << 16
_TOP = 0xFFFFFFFF
_INGRESS = 0xFFFF0000
_ENTRANCE = 0xFFFFFFF1
_FLOW = 0x10020
_ALL_PROTOCOLS = 3
_LEAST_BURST = 64 << 10  # bytes, of which one packet with offloads may be
_BURST_TIME = 0.02  # seconds that may go through at once


@attrs.frozen
class Rate:
    """Bytes a second that the guest may receive and send; None is no limit."""

    received: int | None = None
    sent: int | None = None


def set_rate(ifname: str, rate: Rate) -> None:
    """Have a tap device let through *rate*, and forget what it was bound to before.

    Raises HostLacks, also when somebody else bounds it; then it is bound to nothing of ours.
    """
    with opened_netlink(f"bound the traffic of the device {ifname!r}") as route:
        indexes = route.link_lookup(ifname=ifname)
        if not indexes:
            raise HostLacks(f"there is no device {ifname!r}")
        (index,) = indexes
        _forget(route, index)
        try:
            _bound(route, index, ifname, rate)
        except BaseException:
            _forget(route, index)
            raise


def _bound(route: Any, index: int, ifname: str, rate: Rate) -> None:
    if rate.received is not None:
        burst = max(_LEAST_BURST, round(rate.received * _BURST_TIME))
        route.tc("add", "tbf", index, _ROOT, rate=rate.received, latency="50ms", burst=burst)
    if rate.sent is None:
        return
    burst = max(_LEAST_BURST, round(rate.sent * _BURST_TIME))
    route.tc("add", "ingress", index, _INGRESS)
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        route.tc(
            "add-filter",
            "u32",
            index,
            parent=_INGRESS,
            protocol=_ALL_PROTOCOLS,
            prio=_OURS,
            target=_FLOW,
            rate=rate.sent,
            burst=burst,
            limit=0,
            action="drop",
            keys=["0x0/0x0+0"],
        )
    except NetlinkError as error:
        if error.code not in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        what = f"this kernel cannot bound what {ifname!r} sends"
        raise HostLacks(what, "sudo modprobe act_police cls_u32, or leave max_sent out") from error


def _forget(route: Any, index: int) -> None:
    """Take away what we have put there, and nothing of anybody else's."""
    handles = {qdisc["handle"] for qdisc in route.get_qdiscs(index)}
    if _ROOT in handles:
        route.tc("del", index=index, handle=_ROOT, parent=_TOP)
    if _INGRESS in handles:
        filters = route.get_filters(index=index, parent=_INGRESS)
        if all(it["info"] >> 16 == _OURS for it in filters):
            route.tc("del", index=index, handle=_INGRESS, parent=_ENTRANCE)
