"""The points in time that a machine's disks can go back to.  Pure data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import chain, count
from pathlib import PurePath
from typing import Literal

import attrs

from qmpkit.spec.names import NODE_NAME_LIMIT

__all__ = ["Snapshot", "bare_memory_file", "free_tag", "layer_file", "layer_node"]
__all__ += ["memory_file", "snapshot_name_problem", "tag_of", "variables_file"]

SNAPSHOT_NAME_LIMIT = 48
"""In characters, all ASCII: a snapshot's name is part of its layers' file names."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


@attrs.frozen(kw_only=True)
class Snapshot:
    """One point of a machine.

    `kind`: "external" when it is kept as layers below those that are written to, "internal"
    when the images hold it themselves, with the machine's RAM.  `time`: seconds since the
    epoch.  `memory`: the file that has the RAM of an external one, None without;
    `variables`: the one that has its UEFI variables.  `pause`: for how many seconds the guest
    stood still for these.  `parent`: the snapshot that the machine came from then.  `tag`: the
    name by which the images know an internal one, when it has got another since; QEMU renames
    none.  `disks`: of each disk in it, by id, the file that holds it, which is only read from
    then on (external), or the image it is in; `formats`: theirs.  `description`: what it is
    for.  `whole`: false when its removal was begun and not ended: the machine has its data,
    and there is no going back to it any more.
    """

    name: str
    kind: Literal["external", "internal"] = "external"
    time: float = 0.0
    memory: str | None = None
    variables: str | None = None
    pause: float = 0.0
    parent: str | None = None
    tag: str | None = None
    disks: dict[str, str] = attrs.field(factory=dict)
    formats: dict[str, str] = attrs.field(factory=dict)
    description: str = ""
    whole: bool = True

    @property
    def beside(self) -> tuple[str, ...]:
        """The files that belong to it and are no disk's."""
        return tuple(file for file in (self.memory, self.variables) if file is not None)


def tag_of(point: Snapshot) -> str:
    """The name by which the images know an internal snapshot."""
    return point.tag or point.name


def free_tag(name: str, points: Iterable[Snapshot]) -> str:
    """A name for the images that none of the snapshots has there: *name*, if it can be."""
    taken = {tag_of(point) for point in points if point.kind == "internal"}
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(tag for tag in names if tag not in taken)


def snapshot_name_problem(name: str) -> str:
    """What is wrong with a snapshot's name; empty when it is fine."""
    if not _NAME.fullmatch(name):
        rule = "a letter or digit, then letters, digits, '-', '.', '_'"
        return f"{name!r} is not a snapshot's name: {rule}"
    if len(name) > SNAPSHOT_NAME_LIMIT:
        return f"{name!r} is longer than {SNAPSHOT_NAME_LIMIT} characters"
    return ""


def layer_file(origin: str, snapshot: str) -> str:
    """The file for what a guest writes after *snapshot*, beside the one that was there at first.

    `web.qcow2` → `web.<snapshot>.qcow2`.
    """
    path = PurePath(origin)
    return os.fspath(path.with_name(f"{path.name.removesuffix('.qcow2')}.{snapshot}.qcow2"))


def memory_file(origin: str, snapshot: str) -> str:
    """The file for the RAM of *snapshot*: `web.qcow2` → `web.<snapshot>.ram`."""
    return f"{layer_file(origin, snapshot).removesuffix('.qcow2')}.ram"


def bare_memory_file(machine: str, snapshot: str) -> str:
    """The name of the file for the RAM of a machine without disks: `web.<snapshot>.ram`."""
    return f"{machine}.{snapshot}.ram"


def variables_file(origin: str, snapshot: str) -> str:
    """The file for UEFI variables of *snapshot*: `web.vars` → `web.<snapshot>.vars`."""
    path = PurePath(origin)
    return os.fspath(path.with_name(f"{path.stem}.{snapshot}{path.suffix}"))


def layer_node(disk_node: str, taken: frozenset[str] | set[str]) -> str:
    """The name of the node above *disk_node*: `qk-disk0` → `qk-disk0-1`, the first not *taken*."""
    stem, _, number = disk_node.rpartition("-")
    if not number.isdecimal() or not stem:
        stem, number = disk_node, "0"
    count = int(number)
    while True:
        count += 1
        name = f"{stem[: NODE_NAME_LIMIT - len(f'-{count}-file')]}-{count}"
        if name not in taken and f"{name}-file" not in taken:
            return name
