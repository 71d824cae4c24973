"""What both QEMUs of a migration are told to do and not to do: each capability by name.  Pure.

A capability that is on by default in one version and unknown to the other, or was left on by
an earlier migration, would make the two ends speak differently: so all are decided on, also to
be off, and what is not so already is set.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs

from qmpkit.errors import Fault
from qmpkit.operations.migration.options import MigrationOptions

__all__ = ["Agreed", "Setting", "agree", "told_anew", "wanted_capabilities"]

Setting = list[dict[str, object]]
"""The argument of `migrate-set-capabilities`."""

# Those without which it is not worth less: the other side's word for more safety or speed.
_OPTIONAL = frozenset({"late-block-activate", "validate-uuid", "mapped-ram"})
# What one QEMU knows by itself, and the other need not.
_OWN = frozenset({"events", "pause-before-switchover", "auto-converge", "late-block-activate"})


@attrs.frozen
class Agreed:
    """What each end is told, and `on`, what both have of what was wanted."""

    source: Setting
    destination: Setting
    on: frozenset[str]
    faults: tuple[Fault, ...] = ()


def wanted_capabilities(
    options: MigrationOptions,
    *,
    throttled: bool,
    runs: bool,
    pauses: bool = False,
    postcopies: bool = False,
    bitmaps: bool = False,
) -> set[str]:
    """The capabilities that a migration is to have.

    *throttled*: the guest may be slowed down until it converges.  *runs*: it does; of one
    that stands still, the destination takes the images with the memory, for nothing else
    makes QEMU 7.2 take them.  *pauses*: there is something to do when the guest stands still,
    before the images change hands; one into a file pauses in any case, for it can be called off
    by no other way (`break_off`).  *postcopies*: it may run there before its memory has come.
    *bitmaps*: dirty bitmaps go along with their disks.
    """
    wanted = {"events"}
    if pauses or options.way == "file":
        wanted.add("pause-before-switchover")
    if options.way != "file":
        wanted.add("return-path")
    else:
        wanted.add("mapped-ram")
    if options.channels:
        wanted.add("multifd")
    if throttled:
        wanted.add("auto-converge")
    if postcopies:
        wanted.add("postcopy-ram")
    if runs:
        wanted.add("late-block-activate")
    if bitmaps:
        wanted.add("dirty-bitmaps")
    return wanted


def agree(source: Collection[str], destination: Collection[str], wanted: Collection[str]) -> Agreed:
    """What the two are to be told, by the names in each one's `query-migrate-capabilities`."""
    by_end: Mapping[str, Collection[str]] = {"source": source, "destination": destination}
    faults = [
        Fault(f"capabilities.{name}", f"the {end}'s QEMU does not have it", "use a newer QEMU")
        for name in sorted(wanted)
        for end, known in by_end.items()
        if name not in known and name not in _OPTIONAL
    ]
    both = {name for name in wanted if name in source and name in destination}
    alone = {name for name in wanted if name in _OWN}
    return Agreed(
        _setting(source, both | alone),
        _setting(destination, both | alone),
        frozenset(both),
        tuple(faults),
    )


def told_anew(setting: Setting, now: Mapping[str, bool]) -> Setting:
    """What of *setting* is not so *now*.  QEMU reads a command byte by byte, so each counts."""
    return [line for line in setting if now.get(str(line["capability"])) is not line["state"]]


def _setting(known: Collection[str], on: Collection[str]) -> Setting:
    return [{"capability": name, "state": name in on} for name in known]
