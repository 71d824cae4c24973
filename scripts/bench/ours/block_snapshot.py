"""Our side of `block.snapshot_pause`: what a guest's writes wait for `vm.snapshots.take`."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import trio
from writing_guest import LOOK, Watch, Writes

from qmpkit import VM, Disk, LaunchOptions, MachineSpec, running


class Switches:
    """When the last transaction was sent, and when QEMU answered it, at the latest."""

    def __init__(self) -> None:
        self.last = (0.0, 0.0)
        self._under_way = False

    def seen(self, direction: str, message: bytes, when: float) -> None:
        if direction == "sent" and b'"transaction"' in message:
            self.last, self._under_way = (when, when), True
        elif self._under_way and b'"return"' in message:
            self.last, self._under_way = (self.last[0], when), False


async def look(vm: VM, folder: Path) -> Writes:
    begun = time.monotonic()
    await vm.execute("pmemsave", {**LOOK, "filename": str(folder / "memory")})
    at = (begun + time.monotonic()) / 2
    return Writes.of((folder / "memory").read_bytes(), at)


async def measure(folder: Path, disks: list[Disk], load: dict[str, float]) -> dict[str, float]:
    spec = MachineSpec(name="writer", accel="tcg", memory="16MiB", disks=disks)
    pauses, longest, took = [], [], []
    switches = Switches()
    options = LaunchOptions(observer=switches.seen)
    async with running(spec, options=options) as vm:
        while (await look(vm, folder)).count < load["writes"]:  # noqa: ASYNC110  # nothing tells
            await trio.sleep(0.02)
        first = await look(vm, folder)
        await trio.sleep(load["quiet"])
        watch = Watch(first, await look(vm, folder))
        for number in range(int(load["snapshots"])):
            begun = time.monotonic()
            await vm.snapshots.take(f"s{number}")
            took.append(time.monotonic() - begun)
            ended = begun + took[-1]
            while not watch.shows(seen := await look(vm, folder), ended):  # noqa: ASYNC110
                await trio.sleep(load["after"])
            pauses.append(watch.gap(seen, *switches.last))
            longest.append(watch.gap(seen, begun, begun + took[-1]))
    return {
        "snapshot_pause": statistics.median(pauses),
        "longest": statistics.median(longest),
        "quiet": watch.quiet,
        "take": statistics.median(took),
    }


def main() -> None:
    load = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder, disks = Path(name), []
        for image in load["images"]:
            shutil.copy(image, folder)
            disks.append(Disk(str(folder / Path(image).name), format="qcow2"))
        print(json.dumps(trio.run(measure, folder, disks, load)))


main()
