"""Which disks go along, and what is told of them before anything is done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qmpkit import Copying, Disk, MachineSpec, MigrationOptions
from qmpkit.machine.ledger import Change
from qmpkit.operations.block.recovery import own_files
from qmpkit.operations.migration.capabilities import wanted_capabilities
from qmpkit.operations.migration.convergence import copying_round
from qmpkit.operations.migration.storage import DiskMove, DiskPlaces, moves_of, with_moves
from qmpkit.operations.migration.storage_there import place_faults, room_fault, thread_faults

SIZE = 1 << 24


class Nodes:
    """A monitor of two disks: a layer above a base, and a raw image."""

    name = "mover"

    def __init__(self, **more: Any) -> None:
        self._more = more

    async def execute(self, command: str, *_: object, **__: object) -> Any:
        return {
            "query-named-block-nodes": [
                _node("top", "qcow2", "top.qcow2", 5, **self._more),
                _node("base", "qcow2", "base.qcow2", 7),
                _node("raw", "raw", "raw.img", 9),
                *(
                    _node(f"{name}-file", "file", f"/d/{name}", 0)
                    for name in ("top", "base", "raw")
                ),
            ],
            "x-debug-query-block-graph": _GRAPH,
            "query-block": [_block("disk0", "top"), _block("disk1", "raw")],
        }[command]


def _node(name: str, driver: str, file: str, used: int, **more: Any) -> dict[str, Any]:
    image = {"virtual-size": SIZE, "actual-size": used, **more.pop("image", {})}
    return {"node-name": name, "drv": driver, "file": file, "ro": False, "image": image, **more}


def _block(disk: str, node: str) -> Mapping[str, Any]:
    qdev = f"/machine/peripheral/{disk}/virtio-backend"
    return {"qdev": qdev, "device": "", "inserted": {"node-name": node}}


_EDGES = [("top", "file", "top-file"), ("top", "backing", "base"), ("base", "file", "base-file")]
_EDGES += [("raw", "file", "raw-file")]
_NAMES = ("top", "base", "raw", "top-file", "base-file", "raw-file")
_GRAPH = {
    "nodes": [{"id": name, "name": name} for name in _NAMES],
    "edges": [{"parent": it[0], "name": it[1], "child": it[2]} for it in _EDGES],
}
DISKS = [
    Disk("/d/top", format="qcow2", id="disk0", make="16MiB"),
    Disk("/d/raw", format="raw", id="disk1", discard=False),
    Disk("/d/seed", format="raw", id="disk2", readonly=True),
    Disk(format="raw", interface="cdrom", id="cd0"),
]
SPEC = MachineSpec(name="mover", disks=DISKS)


async def planned(disks: DiskPlaces, *, collapse: bool = False, **more: Any) -> tuple[Any, Any]:
    nodes: Any = Nodes(**more)
    return await moves_of(nodes, SPEC, disks, collapse=collapse)


async def test_all_that_are_written_to_go_into_a_directory() -> None:
    (top, raw), faults = await planned("/new")
    assert not faults
    assert [top.disk.file, raw.disk.file] == ["/new/top", "/new/raw"]
    assert (top.base, raw.base) == (("/d/base", "qcow2"), None)
    # Zeroes of a raw image take space when they may not be discarded.
    assert (top.bytes, raw.bytes) == (5, SIZE)
    spec = with_moves(SPEC, (top, raw))
    assert [disk.origin for disk in spec.disks] == ["/d/top", "/d/raw", None, None]
    assert [disk.make for disk in spec.disks] == [None] * 4
    assert {top.target, raw.target} == {"qk-migrate0", "qk-migrate1"}


async def test_the_layers_below_come_too_if_that_is_asked() -> None:
    ((top,), _) = await planned({"disk0": "/new/x"}, collapse=True)
    assert (top.base, top.bytes, top.source, top.file) == (None, 12, "top", "/d/top")


async def test_none_goes_along_unasked() -> None:
    assert await planned("shared") == ((), ())


async def test_bitmaps_that_tell_the_truth_go_along() -> None:
    bitmaps = [{"name": "a"}, {"name": "b", "inconsistent": True}, {"recording": True}]
    more: dict[str, Any] = {"dirty-bitmaps": bitmaps}
    ((top,), _) = await planned({"disk0": "/x"}, **more)
    assert top.bitmaps == ("a",)
    options = MigrationOptions()
    wanted = wanted_capabilities(options, throttled=False, runs=True, bitmaps=True)
    assert "dirty-bitmaps" in wanted
    assert "dirty-bitmaps" not in wanted_capabilities(options, throttled=False, runs=True)


async def test_what_would_be_lost_is_a_fault() -> None:
    image = {"snapshots": [{"name": "one"}, {"name": "two"}]}
    _, faults = await planned({"disk0": "/x", "disk3": "/y", "disk2": "/z"}, image=image)
    told = {fault.path: fault.message for fault in faults}
    assert "the snapshots one, two" in told["disks.disk0"]
    assert "no disk 'disk3'" in told["disks.disk3"] and "only read" in told["disks.disk2"]


def move(file: Path, number: int = 0, **more: Any) -> DiskMove:
    disk = Disk(str(file), format="qcow2", id=f"disk{number}", **more.pop("disk", {}))
    words = {"source": "x", "file": "/d/x", "size": SIZE, "bytes": 1, **more}
    return DiskMove(disk=disk, number=number, **words)


def test_places(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    moves = [
        move(tmp_path / "there"),
        move(tmp_path / "none" / "x", 1),
        move(tmp_path / "twice", 2),
        move(tmp_path / "twice", 3),
        move(tmp_path / "top", 4, base=(str(tmp_path / "base"), "qcow2")),
    ]
    said = [fault.message for fault in place_faults(moves)]
    wanted = ["exists already", "no directory", "that of 'disk2' too", "base is not there"]
    assert len(said) == 4 and all(it in one for it, one in zip(wanted[:3], said, strict=False))
    assert "is not there" in said[3]
    assert room_fault(moves[2:]) is None
    lacks = room_fault([move(tmp_path / "big", bytes=1 << 62), moves[2]])
    assert lacks is not None and "would take" in lacks.what


def test_threads_of_an_old_qemu(tmp_path: Path) -> None:
    scsi = move(tmp_path / "a", disk={"iothread": "io", "interface": "virtio-scsi"})
    moves = [scsi, move(tmp_path / "b", 1, disk={"iothread": "io"}), move(tmp_path / "c", 2)]
    assert [it.path for it in thread_faults(moves, (7, 2, 0))] == ["disks.disk0"]
    assert not [*thread_faults(moves, (9, 0, 0))]


def test_the_copying_is_a_round_before_the_first() -> None:
    now = copying_round((Copying("disk0", 3, 10), Copying("disk1", 1, 2)), 1.5, 0.3)
    assert (now.number, now.remaining, now.total, now.transferred) == (0, 8, 12, 4)
    assert now.left is None


@pytest.mark.parametrize("at", [None, 0, SIZE // 2, SIZE - 1])
def test_an_image_that_holds_nothing_is_known(at: int | None, tmp_path: Path) -> None:
    """Of one whose number nobody has written down."""
    file = tmp_path / "raw"
    with file.open("wb") as image:
        image.write(bytes(4096))
        image.truncate(SIZE)
        if at is not None:
            os.pwrite(image.fileno(), b"x", at)
    change = Change(what="move", spec=SPEC, begun=SPEC, files=(str(file),))
    assert own_files(change) == ([str(file)] if at is None else [])
