"""Images as the library tells of them, for what is printed of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qmpkit.images import ImageInfo, Snapshot

__all__ = ["snapshot_named", "some_image"]


def some_image(path: str, **changes: Any) -> ImageInfo:
    plain: dict[str, Any] = {
        "path": Path(path),
        "format": "qcow2",
        "virtual_size": 3 << 30,
        "disk_size": 1288490188,
        "cluster_size": 65536,
        "encrypted": False,
        "dirty": False,
        "corrupt": False,
        "backing": None,
        "backing_format": None,
        "backing_path": None,
        "data_file": None,
        "snapshots": (),
        "bitmaps": (),
        "key_slots": (),
        "in_use": False,
        "holders": (),
        "raw": {},
    }
    return ImageInfo(**{**plain, **changes})


def snapshot_named(name: str) -> Snapshot:
    return Snapshot(id="1", name=name, vm_size=0, taken=1.7e9, vm_clock=0.0)
