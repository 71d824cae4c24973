"""What a backup of a running machine consists of: which disks, and from which bitmap each.

A disk's dirty bitmap is in the image that the guest writes to, and stays there when QEMU
ends in order.  It is the last point's, or of no use: then all of the disk is copied.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import attrs

from qmpkit.errors import Fault, SpecInvalid
from qmpkit.operations._protocols import Changeable
from qmpkit.operations.block.graph import Graph, Layer
from qmpkit.qmp.errors import CommandRefused
from qmpkit.spec.backups import (
    BITMAP_PREFIX,
    BackupLayer,
    BackupManifest,
    bitmap_name,
    bitmap_prefix,
    layer_file_name,
    layers_below,
)

__all__ = [
    "LONGEST_CHAIN",
    "Copy",
    "Mode",
    "dirty_bitmaps",
    "free_targets",
    "planned",
    "remove_bitmaps",
]

Mode = Literal["auto", "full", "incremental"]

LONGEST_CHAIN = 100
"""Layers of one disk that need each other; QEMU takes twice that, in time that grows squared."""

_MODES = ("auto", "full", "incremental")
_HINT = 'mode="auto" copies all of it then'


@attrs.frozen(kw_only=True)
class Copy:
    """One disk of a backup.

    `node`: what is copied.  `file`: the layer's name, `parent` the one below it.  `since`:
    the bitmap of what is copied, None for all.  `bitmap`: the one that is added, None when
    the image holds none.  `bytes`: the most that it takes, or what that is thought to be.
    `target`: the node that is written to.  `job`: who does it.
    """

    disk: str
    node: str
    size: int
    file: str
    bytes: int
    target: str
    job: str
    parent: str | None = None
    since: str | None = None
    bitmap: str | None = None
    why: str = ""


@attrs.frozen
class _Known:
    """What is known of one disk before it is decided upon."""

    disk: str
    chain: tuple[Layer, ...]
    bitmap: Mapping[str, Any] | None
    parent: BackupLayer | None
    depth: int = 0
    parent_there: bool = False
    unable: str = ""

    @property
    def unfit(self) -> str:
        """Why it cannot be incremental; "" when it can."""
        if self.unable:
            return self.unable
        if self.parent is None:
            return "there is no point of it before"
        if not self.parent_there:
            return f"{self.parent.file} is not there any more as it was"
        if self.depth >= LONGEST_CHAIN:
            return f"{self.depth} layers need each other already"
        if self.bitmap is None:
            return (
                "its dirty bitmap is gone: a snapshot, a merge, a move, a restore or another "
                "order of the disks has changed its image, "
                "or QEMU was killed before it was stored there"
            )
        if self.bitmap.get("inconsistent"):
            return "its dirty bitmap may lack changes: QEMU was killed, or the host lost power"
        if not self.bitmap["recording"] or self.bitmap["busy"]:
            return "its dirty bitmap has not been recording all the time"
        return ""


def planned(
    machine: Changeable,
    graph: Graph,
    bitmaps: Bitmaps,
    manifest: BackupManifest,
    mode: Mode,
    folder: Path,
) -> tuple[Copy, ...]:
    """What is to be done for the next point.  Looks at files' sizes; blocking.

    Raises SpecInvalid with all faults: an
    unknown mode, no disk to back up, a disk that cannot be incremental when that is asked.
    """
    source = f"machine {machine.name!r}"
    if mode not in _MODES:
        raise SpecInvalid([Fault("mode", f"must be one of {', '.join(_MODES)}")], source)
    disks = [disk.id for disk in machine.spec.disks if not disk.is_readonly]
    if not disks:
        raise SpecInvalid([Fault("disks", "it has no disk that it can write to")], source)
    known = [_known(disk, graph, bitmaps, manifest, folder) for disk in disks]
    if mode == "incremental":
        faults = [Fault(it.disk, it.unfit, _HINT) for it in known if it.unfit]
        if faults:
            raise SpecInvalid(faults, source)
    names = free_targets(graph)
    return tuple(_copy(it, manifest, mode, next(names)) for it in known)


def _known(
    disk: str,
    graph: Graph,
    bitmaps: Bitmaps,
    manifest: BackupManifest,
    folder: Path,
) -> _Known:
    chain = graph.chain(disk)
    last = manifest.last
    parent = last.disks.get(disk) if last else None
    unable = bitmaps.unable(chain[0])
    if parent is None or parent.bitmap is None:
        return _Known(disk, chain, None, None, unable=unable)
    below = layers_below(manifest, parent)
    there = all(_is_there(folder, layer) for layer in below)
    bitmap = bitmaps.of(chain[0].node).get(parent.bitmap)
    return _Known(disk, chain, bitmap, parent, len(below), there, unable)


def _is_there(folder: Path, layer: BackupLayer) -> bool:
    with suppress(OSError):
        return (folder / layer.file).stat().st_size == layer.length
    return False


def _copy(it: _Known, manifest: BackupManifest, mode: Mode, target: str) -> Copy:
    number = manifest.last.number + 1 if manifest.last else 1
    top = it.chain[0]
    common: dict[str, Any] = {
        "disk": it.disk,
        "node": top.node,
        "size": top.size,
        "file": layer_file_name(it.disk, number, manifest.id),
        "bitmap": None if it.unable else bitmap_name(manifest.id, number, it.disk, _token()),
        "target": target,
        "job": f"{target}-{it.disk}",
    }
    if mode != "full" and not it.unfit and it.parent and it.bitmap:
        count = it.bitmap["count"]
        return Copy(parent=it.parent.file, since=it.parent.bitmap, bytes=count, **common)
    used = min(top.size, sum(layer.used for layer in it.chain))
    why = it.unfit if mode == "auto" and (manifest.points or it.unable) else ""
    return Copy(why=why, bytes=used, **common)


def _token() -> str:
    return secrets.token_hex(4)


def free_targets(graph: Graph) -> Iterator[str]:
    """Names for nodes that nobody has."""
    number = 0
    while True:
        name = f"qk-backup{number}"
        if name not in graph and f"{name}-file" not in graph:
            yield name
        number += 1


class Bitmaps:
    """The dirty bitmaps of all nodes, as QEMU tells of them; `dirty_bitmaps` asks for them."""

    def __init__(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        self._nodes = {node["node-name"]: node for node in nodes}

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Each one's node and name."""
        for node in self._nodes:
            for name in self.of(node):
                yield node, name

    def of(self, node: str) -> dict[str, Mapping[str, Any]]:
        """Those of one node, by their names."""
        told = self._nodes[node].get("dirty-bitmaps", ())
        return {bitmap["name"]: bitmap for bitmap in told if "name" in bitmap}

    def unable(self, layer: Layer) -> str:
        """Why that image can hold none for longer than its QEMU lives; "" when it can."""
        if layer.format != "qcow2":
            return f"a {layer.format} image holds no dirty bitmap"
        specific = self._nodes[layer.node]["image"].get("format-specific", {}).get("data", {})
        if specific.get("compat") == "0.10":
            return "a qcow2 of the old version holds no dirty bitmap: qemu-img amend -o compat=1.1"
        return ""


async def dirty_bitmaps(machine: Changeable) -> Bitmaps:
    """The dirty bitmaps there are now."""
    return Bitmaps(await machine.execute("query-named-block-nodes", {"flat": True}))


async def remove_bitmaps(machine: Changeable, repository: str, keep: Collection[str] = ()) -> None:
    """Remove a repository's dirty bitmaps from all images that are written to, but for *keep*.

    `repository` "": those of all.  One that is in use, or in an image that is only read, stays.
    """
    prefix = bitmap_prefix(repository) if repository else BITMAP_PREFIX
    for node, name in await dirty_bitmaps(machine):
        if name.startswith(prefix) and name not in keep:
            with suppress(CommandRefused):
                words = {"node": node, "name": name}
                await machine.execute("block-dirty-bitmap-remove", words)
