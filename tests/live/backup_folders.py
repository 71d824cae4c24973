"""What the tests of backups share: a look into their folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import qmpkit
from qmpkit import BackupPoint, backups
from qmpkit.backups.repository import MANIFEST
from qmpkit.operations.block.backup_plan import dirty_bitmaps
from tests.live.blocks import holds

__all__ = ["files_needed", "files_there", "make_first_older", "make_of_first_schema", "points_in"]
__all__ += ["io", "ours", "restored", "trust"]

DAY = 86400


def files_there(folder: Path) -> set[str]:
    """All that is in the folder but for the manifest."""
    return {path.name for path in folder.iterdir()} - {MANIFEST}


def files_needed(points: tuple[BackupPoint, ...]) -> set[str]:
    """What should be there."""
    return {layer.file for point in points for layer in point.disks.values()}


async def points_in(folder: Path) -> tuple[BackupPoint, ...]:
    """The points, also of a folder that nothing has been put into."""
    return await backups.points(folder) if (folder / MANIFEST).exists() else ()


def make_first_older(folder: Path) -> None:
    """Put the first point three days into the past of the second."""
    told = json.loads((folder / MANIFEST).read_text())
    told["points"][0]["time"] = told["points"][1]["time"] - 3 * DAY
    (folder / MANIFEST).write_text(json.dumps(told))


def make_of_first_schema(folder: Path) -> None:
    """Write the manifest as the first qmpkit did, which knew SHA-256 alone."""
    told = json.loads((folder / MANIFEST).read_text())
    for point in told["points"]:
        for layer in point["disks"].values():
            del layer["checksum"]
            layer["sha256"] = hashlib.sha256((folder / layer["file"]).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({**told, "schema": 1}))


def trust(folder: Path, file: Path) -> None:
    """Have the manifest say that the second point's first layer, *file*, is as it should be."""
    told = json.loads((folder / MANIFEST).read_text())
    content = file.read_bytes()
    layer = next(iter(told["points"][1]["disks"].values()))
    layer |= {"length": len(content), "checksum": f"sha256:{hashlib.sha256(content).hexdigest()}"}
    (folder / MANIFEST).write_text(json.dumps(told))


async def io(vm: qmpkit.VM, disk: str, command: str) -> None:
    """Have QEMU do it through the disk's device."""
    line = f'qemu-io -d /machine/peripheral/{disk}/virtio-backend "{command}"'
    await vm.execute("human-monitor-command", {"command-line": line})


async def restored(folder: Path, disk: str, point: int | None, expected: dict[int, int]) -> None:
    """The point, None: the newest, restores to this."""
    target = folder / f"{disk}-{point}.raw"
    await backups.restore(folder, disk, target, point=point, format="raw")
    try:
        await holds(str(target), "raw", expected)
    finally:
        target.unlink()


async def ours(vm: qmpkit.VM) -> set[str]:
    """The dirty bitmaps in all its images."""
    return {name for _, name in await dirty_bitmaps(vm.machine)}
