"""What machines use a second, from two answers of a daemon.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["rates"]


def rates(now: Iterable[Mapping[str, Any]], before: Iterable[Mapping[str, Any]]) -> list[Any]:
    """A dict for each machine of *now*; what has no earlier answer has rates of None."""
    earlier = {it["machine"]: it for it in before if "error" not in it}
    return [_one(it, earlier.get(it["machine"])) for it in now]


def _one(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    known = {name: now.get(name) for name in ("machine", "state", "cpus", "error")}
    if "error" in now:
        return known
    memory = now["memory"]
    known |= {"memory": memory["rss"] + memory["huge"], "balloon": memory["balloon"]}
    seconds = None if before is None else now["time"] - before["time"]
    if before is None or not seconds or seconds <= 0 or _spent(now) < _spent(before):
        return known | dict.fromkeys(_RATES)  # it was started anew in between
    vcpus = {
        number: (_time(it) - _time(before["vcpus"][number])) / seconds
        for number, it in now["vcpus"].items()
        if number in before["vcpus"]
    }
    return known | {
        "cpu": (_spent(now) - _spent(before)) / seconds,
        "waited": (_waited(now) - _waited(before)) / seconds,
        "vcpus": vcpus,
        "read": _rate("disks", "read", now, before, seconds),
        "written": _rate("disks", "written", now, before, seconds),
        "received": _rate("nics", "received", now, before, seconds),
        "sent": _rate("nics", "sent", now, before, seconds),
    }


_RATES = ("cpu", "waited", "vcpus", "read", "written", "received", "sent")


def _time(thread: Mapping[str, float]) -> float:
    return thread["user"] + thread["system"]


def _threads(stats: Mapping[str, Any]) -> list[Mapping[str, float]]:
    return [*stats["vcpus"].values(), *stats["iothreads"].values(), stats["emulator"]]


def _spent(stats: Mapping[str, Any]) -> float:
    return sum(map(_time, _threads(stats)))


def _waited(stats: Mapping[str, Any]) -> float:
    return sum(thread["waited"] for thread in _threads(stats))


def _rate(
    kind: str, field: str, now: Mapping[str, Any], before: Mapping[str, Any], seconds: float
) -> float | None:
    """Of all disks or NICs together; None when there are none that are counted."""
    both = [name for name in now[kind] if name in before[kind]]
    if not both:
        return None
    return float(sum(now[kind][it][field] - before[kind][it][field] for it in both) / seconds)
