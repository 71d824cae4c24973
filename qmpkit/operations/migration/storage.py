"""Which disks go along with a machine that migrates, into which new images, and what hinders that.

A disk that goes along is copied by a mirror of QEMU's while its guest writes.  What a mirror
does not carry is told before anything is started, never left behind in silence.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from qmpkit.errors import Fault
from qmpkit.operations._protocols import Monitor
from qmpkit.operations.block.graph import Graph, Layer, graph_of
from qmpkit.operations.block.layers import with_disks
from qmpkit.spec.block import Disk, disk_node
from qmpkit.spec.machine import MachineSpec
from qmpkit.spec.names import job_id
from qmpkit.spec.suggest import among

__all__ = ["SHARED", "DiskMove", "DiskPlaces", "moves_of", "with_moves"]

SHARED = "shared"
"""All disks stay where they are, for both ends."""

DiskPlaces = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]
"""`SHARED`; a directory, in which each disk that is written to gets a file of its name; or
the new file of each disk that goes along, by its id."""


@attrs.frozen(kw_only=True)
class DiskMove:
    """One disk that goes along.

    `disk`: as it is at the destination, where its node is `disk_node(disk)`.  `source`: the node
    that the guest writes to, of `size` bytes, in the image `file`.  `base`: the image and the
    format below the new one, which has it already; None when the new one stands alone.
    `bytes`: what the new image takes, as far as that is known.  `bitmaps`: the dirty bitmaps
    that go along.  `number`: which one of those that move.
    """

    disk: Disk
    source: str
    file: str
    size: int
    bytes: int
    number: int
    base: tuple[str, str] | None = None
    bitmaps: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The disk's, and the name by which the destination serves it."""
        return self.disk.id

    @property
    def job(self) -> str:
        """The mirror at the source."""
        return job_id("migrate", self.id, 1)

    @property
    def target(self) -> str:
        """The source's node for what the destination serves."""
        return f"qk-migrate{self.number}"

    @property
    def node(self) -> str:
        """The destination's node of the new image."""
        return disk_node(self.disk)


def with_moves(spec: MachineSpec, moves: Iterable[DiskMove]) -> MachineSpec:
    """*spec* as it is once these disks have moved."""
    return with_disks(spec, (move.disk for move in moves))


async def moves_of(
    source: Monitor, spec: MachineSpec, disks: DiskPlaces, *, collapse: bool
) -> tuple[tuple[DiskMove, ...], tuple[Fault, ...]]:
    """The disks that *disks* means, as they are now, and what of the machine is in the way.

    *collapse*: what is in their bases is copied too, into images that stand alone.
    """
    wanted, faults = _targets(spec, disks)
    if not wanted:
        return (), faults
    graph = await graph_of(source)
    nodes = await source.execute("query-named-block-nodes", {"flat": True})
    by_name = {node["node-name"]: node for node in nodes}
    moves: list[DiskMove] = []
    for disk, target in wanted:
        chain = graph.chain(disk.id)
        moves.append(_move(disk, target, chain, by_name, len(moves), collapse=collapse))
    return tuple(moves), (*faults, *_image_faults(moves, graph, by_name))


def _targets(
    spec: MachineSpec, disks: DiskPlaces
) -> tuple[list[tuple[Disk, Path]], tuple[Fault, ...]]:
    if not isinstance(disks, Mapping):
        if disks == SHARED:
            return [], ()
        folder = Path(disks).absolute()
        named = {disk.id: folder / Path(disk.file).name for disk in spec.disks if _goes(disk)}
        return [(disk, named[disk.id]) for disk in spec.disks if disk.id in named], ()
    known = {disk.id: disk for disk in spec.disks}
    faults = [*_name_faults(known, disks)]
    asked = {name: Path(file).absolute() for name, file in disks.items() if name in known}
    return [(known[name], file) for name, file in asked.items() if _goes(known[name])], (*faults,)


def _goes(disk: Disk) -> bool:
    return not disk.is_readonly and not disk.is_empty


def _name_faults(known: Mapping[str, Disk], asked: Collection[str]) -> Iterator[Fault]:
    for name in asked:
        if name not in known:
            yield Fault(f"disks.{name}", f"it has no disk {name!r}", among(name, known))
        elif not _goes(known[name]):
            yield Fault(f"disks.{name}", "it is only read, and stays where it is", "leave it out")


def _move(
    disk: Disk,
    target: Path,
    chain: tuple[Layer, ...],
    nodes: Mapping[str, Mapping[str, Any]],
    number: int,
    *,
    collapse: bool,
) -> DiskMove:
    top = chain[0]
    below = chain[1] if len(chain) > 1 and not collapse else None
    used = sum(layer.used for layer in (chain if below is None else chain[:1]))
    # Without discard the zeroes of a raw image are written, and take their space.
    whole = disk.format != "qcow2" and not disk.discard
    new = attrs.evolve(
        disk, file=str(target), driver="file", make=None, origin=disk.origin or disk.file
    )
    return DiskMove(
        disk=new,
        source=top.node,
        file=top.file,
        size=top.size,
        bytes=top.size if whole else min(top.size, used),
        number=number,
        base=None if below is None else (below.file, below.format),
        bitmaps=tuple(_bitmaps(nodes[top.node])),
    )


def _bitmaps(node: Mapping[str, Any]) -> Iterator[str]:
    """Those that tell the truth: of the others QEMU carries none, and nobody could use it."""
    for bitmap in node.get("dirty-bitmaps", ()):
        if "name" in bitmap and not bitmap.get("inconsistent"):
            yield bitmap["name"]


def _image_faults(
    moves: Iterable[DiskMove], graph: Graph, nodes: Mapping[str, Mapping[str, Any]]
) -> Iterator[Fault]:
    for move in moves:
        names = [it["name"] for it in nodes[move.source]["image"].get("snapshots", ())]
        if names:
            message = f"{move.file} holds the snapshots {', '.join(names)}, which cannot go along"
            hint = "delete them, or leave this disk where it is: name the others in disks="
            yield Fault(f"disks.{move.id}", message, hint)
        if taken := sorted({move.target} & graph.names):
            hint = "restart it: a migration before this one has left something"
            yield Fault(f"disks.{move.id}", f"there is a node {taken[0]!r} already", hint)
