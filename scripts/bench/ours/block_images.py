"""Our side of the image operations of the group `block`."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import trio

from qmpkit import Supervisor, images

Call = Callable[[Path], Awaitable[object]]

CALLS: Mapping[str, Call] = {
    "create": lambda at: images.create(at / "new", "64MiB", "qcow2"),
    "overlay": lambda at: images.overlay(at / "new", at / "base.qcow2", "qcow2"),
    "info": lambda at: images.info(at / "top.qcow2", format="qcow2"),
    "check": lambda at: images.check(at / "top.qcow2", "qcow2"),
    "map": lambda at: images.extents(at / "top.qcow2", "qcow2"),
    "measure": lambda at: images.measure(at / "top.qcow2", "qcow2", "raw"),
    "compare": lambda at: images.compare(at / "top.qcow2", "qcow2", at / "base.qcow2", "qcow2"),
    "resize": lambda at: images.resize(at / "base.qcow2", "128MiB", "qcow2"),
    "rebase": lambda at: images.rebase(at / "top.qcow2", "qcow2", at / "other.qcow2", "qcow2"),
    "commit": lambda at: images.commit(at / "top.qcow2", "qcow2"),
    "add_bitmap": lambda at: images.add_bitmap(at / "base.qcow2", "b"),
    "snapshot": lambda at: images.create_snapshot(at / "base.qcow2", "s"),
    "convert": lambda at: images.convert(
        at / "top.qcow2", at / "flat", source_format="qcow2", format="qcow2"
    ),
}


async def timed(call: Call, load: dict[str, str]) -> float:
    with tempfile.TemporaryDirectory(dir=load["folder"]) as name:
        at = Path(name) / "images"
        shutil.copytree(load["images"], at)
        started = time.perf_counter()
        await call(at)
        return time.perf_counter() - started


async def measure(load: dict[str, str], calls: int) -> dict[str, float]:
    async with Supervisor():
        return {
            name: statistics.median([await timed(call, load) for _ in range(calls)])
            for name, call in CALLS.items()
        }


def main() -> None:
    load = json.loads(sys.argv[1])
    print(json.dumps(trio.run(measure, load, load["calls"])))


main()
