"""What the kernel counts of a QEMU: its threads' time, its memory, its tap devices.  Blocking."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import attrs

from qmpkit.spec.names import netdev_id
from qmpkit.spec.network import Nic, TapNic

__all__ = ["MemoryUse", "NicUse", "ThreadTime", "memory_use", "nic_use", "tap_of", "thread_time"]

_TICK = os.sysconf("SC_CLK_TCK")


@attrs.frozen
class ThreadTime:
    """Seconds of a processor, of one thread or several together, since their start.

    `user` and `system`: where it was spent; a guest's is "user" under TCG, and under KVM too.
    `waited`: how long it was ready and no processor was free: of a vCPU, what its guest
    calls steal, whether or not it is told of it.
    """

    user: float = 0.0
    system: float = 0.0
    waited: float = 0.0

    @property
    def total(self) -> float:
        """User and system together."""
        return self.user + self.system

    def __add__(self, other: ThreadTime) -> ThreadTime:
        return ThreadTime(
            self.user + other.user, self.system + other.system, self.waited + other.waited
        )

    def __sub__(self, other: ThreadTime) -> ThreadTime:
        return ThreadTime(
            self.user - other.user, self.system - other.system, self.waited - other.waited
        )


@attrs.frozen
class MemoryUse:
    """Bytes of the host's memory that QEMU has, its guest's and its own.

    `rss`: resident; `pss`: with what it shares counted in part, None when that was not asked
    for; `huge`: in huge pages, which no other number counts; `swap`: in swap;
    `locked`: never swapped.  `balloon`: what its guest has now, None without a balloon.
    """

    rss: int = 0
    pss: int | None = None
    huge: int = 0
    swap: int = 0
    locked: int = 0
    balloon: int | None = None


@attrs.frozen
class NicUse:
    """What the guest has `received` and `sent`, in bytes and packets, and what was dropped."""

    received: int = 0
    sent: int = 0
    packets_received: int = 0
    packets_sent: int = 0
    dropped: int = 0


def thread_time(process: int, tids: Iterable[int]) -> ThreadTime:
    """Of the threads *tids* together, as far as they live."""
    return sum(
        (found for tid in tids if (found := _one(process, tid)) is not None), start=ThreadTime()
    )


def _one(process: int, tid: int) -> ThreadTime | None:
    folder = Path(f"/proc/{process}/task/{tid}")
    try:
        # A thread's name may hold anything, a parenthesis too.
        words = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    waited = 0.0
    with suppress(OSError, ValueError, IndexError):
        waited = int((folder / "schedstat").read_text().split()[1]) / 1e9
    return ThreadTime(int(words[11]) / _TICK, int(words[12]) / _TICK, waited)


def memory_use(process: int, *, pss: bool) -> MemoryUse:
    """Of a process; zeros when it has ended.  *pss* costs some 10 ms for each GiB it has."""
    known = _sizes(Path(f"/proc/{process}/status"))
    return MemoryUse(
        rss=known.get("VmRSS", 0),
        pss=_sizes(Path(f"/proc/{process}/smaps_rollup")).get("Pss") if pss else None,
        huge=known.get("HugetlbPages", 0),
        swap=known.get("VmSwap", 0),
        locked=known.get("VmLck", 0),
    )


def _sizes(path: Path) -> dict[str, int]:
    found = {}
    with suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            words = value.split()
            if len(words) == 2 and words[1] == "kB":
                found[name] = int(words[0]) << 10
    return found


def nic_use(ifname: str, root: Path = Path("/")) -> NicUse | None:
    """Of the guest behind a tap device, whose "rx" is what the guest sends."""
    folder = root / "sys/class/net" / ifname / "statistics"

    def number(name: str) -> int:
        return int((folder / name).read_text())

    try:
        return NicUse(
            number("tx_bytes"),
            number("rx_bytes"),
            number("tx_packets"),
            number("rx_packets"),
            number("tx_dropped") + number("rx_dropped"),
        )
    except (OSError, ValueError):
        return None


def tap_of(nic: Nic, process: int, argv: Iterable[str]) -> str | None:
    """The tap device of a NIC; one that was handed over is found by its descriptor.

    None for a NIC that is no tap, or whose device is not to be seen.
    """
    if not isinstance(nic, TapNic) or nic.ifname is not None:
        return nic.ifname if isinstance(nic, TapNic) else None
    for backend in _netdevs(argv):
        if backend.get("id") == netdev_id(nic.id) and "fd" in backend:
            with suppress(OSError):
                return _interface(Path(f"/proc/{process}/fdinfo/{backend['fd']}").read_text())
    return None


def _netdevs(argv: Iterable[str]) -> Iterator[Mapping[str, object]]:
    for option, value in pairwise(argv):
        if option == "-netdev":
            with suppress(ValueError):
                yield json.loads(value)


def _interface(fdinfo: str) -> str | None:
    for line in fdinfo.splitlines():
        if line.startswith("iff:"):
            return line.partition(":")[2].strip() or None
    return None
