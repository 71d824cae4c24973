"""What a guest may read and write each second on one disk, as QEMU's throttle has it."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from qmpkit.errors import Fault
from qmpkit.spec.options import Json
from qmpkit.spec.sizes import Size, to_bytes

__all__ = ["IoLimits", "limits_faults", "throttle_of"]

_HIGHEST = 10**15
"""QEMU takes no number above it, nor a burst that moves more."""


def _bytes(value: str | int) -> Size:
    return to_bytes(value, "limits")


@attrs.frozen(kw_only=True)
class IoLimits:
    """Bounds of one disk, by QEMU's names; 0: none.

    `bps`: bytes a second, read and written together, or apart `bps_rd` and `bps_wr`; `iops`,
    `iops_rd`, `iops_wr`: reads and writes a second.  `…_max`: what it may do instead for
    `…_max_length` seconds, once it has done less before.  `iops_size`: a longer request
    counts as several.
    """

    bps: Size = attrs.field(default=Size(0), converter=_bytes)
    bps_rd: Size = attrs.field(default=Size(0), converter=_bytes)
    bps_wr: Size = attrs.field(default=Size(0), converter=_bytes)
    iops: int = 0
    iops_rd: int = 0
    iops_wr: int = 0
    bps_max: Size = attrs.field(default=Size(0), converter=_bytes)
    bps_rd_max: Size = attrs.field(default=Size(0), converter=_bytes)
    bps_wr_max: Size = attrs.field(default=Size(0), converter=_bytes)
    iops_max: int = 0
    iops_rd_max: int = 0
    iops_wr_max: int = 0
    bps_max_length: int = 1
    bps_rd_max_length: int = 1
    bps_wr_max_length: int = 1
    iops_max_length: int = 1
    iops_rd_max_length: int = 1
    iops_wr_max_length: int = 1
    iops_size: Size = attrs.field(default=Size(0), converter=_bytes)


_UNITS = ("bps", "iops")
_NONE = IoLimits()


def throttle_of(limits: IoLimits | None) -> Json:
    """The arguments of `block_set_io_throttle`, but for the device; None lifts every bound."""
    given = attrs.asdict(limits or _NONE)
    none = attrs.asdict(_NONE)
    always = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    return always | {name: value for name, value in given.items() if value != none[name]}


def limits_faults(limits: object, where: str) -> Iterator[Fault]:
    """Everything in them that QEMU would refuse."""
    if not isinstance(limits, IoLimits):
        yield Fault(where, f"cannot be {limits!r}", 'IoLimits(bps="100MiB", iops=2000)')
        return
    given = attrs.asdict(limits)
    for name, value in given.items():
        lowest = 1 if name.endswith("_length") else 0
        if not lowest <= value <= _HIGHEST:
            yield Fault(f"{where}.{name}", f"goes from {lowest} to {_HIGHEST}, not {value}")
    for unit in _UNITS:
        yield from _together(given, unit, where)
        for name in (unit, f"{unit}_rd", f"{unit}_wr"):
            yield from _burst(given, name, where)
    if limits.iops_size and not (limits.iops or limits.iops_rd or limits.iops_wr):
        yield Fault(f"{where}.iops_size", "is of use only with a bound on iops")


def _together(given: dict[str, int], unit: str, where: str) -> Iterator[Fault]:
    for suffix in ("", "_max"):
        apart = [f"{unit}_{way}{suffix}" for way in ("rd", "wr") if given[f"{unit}_{way}{suffix}"]]
        if given[f"{unit}{suffix}"] and apart:
            hint = "one bound for both ways, or one for each"
            yield Fault(f"{where}.{unit}{suffix}", f"cannot be said with {apart[0]}", hint)


def _burst(given: dict[str, int], name: str, where: str) -> Iterator[Fault]:
    most, length = given[f"{name}_max"], given[f"{name}_max_length"]
    if most and not given[name]:
        yield Fault(f"{where}.{name}_max", f"is of use only with {name}")
    elif most and most < given[name]:
        yield Fault(f"{where}.{name}_max", f"cannot be lower than {name}")
    if length > 1 and not most:
        yield Fault(f"{where}.{name}_max_length", f"is of use only with {name}_max")
    elif length > 1 and most * length > _HIGHEST:
        yield Fault(f"{where}.{name}_max_length", "is too long for that burst")
