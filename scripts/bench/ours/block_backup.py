"""Our side of `block.full_backup`: a machine's disk into a new folder of backups."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import trio

from qmpkit import Disk, MachineSpec, running


async def measure(image: str, folder: Path) -> dict[str, float]:
    disk = Disk(image, format="qcow2")
    spec = MachineSpec(name="bare", accel="tcg", memory="16MiB", disks=[disk])
    async with running(spec) as vm:
        await vm.pause()  # its firmware would look for something to boot
        await trio.to_thread.run_sync(os.sync)
        started = time.perf_counter()
        await vm.backups.run(folder)
        return {"full_backup": time.perf_counter() - started}


def main() -> None:
    load = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory(dir=load["folder"]) as name:
        print(json.dumps(trio.run(measure, load["image"], Path(name) / "backup")))


main()
