"""The floor of `block.snapshot_pause`: the same by a script of QMP commands, and no more."""

from __future__ import annotations

import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from io import BufferedRWPair
from pathlib import Path
from typing import Any

from writing_guest import LOOK, Watch, Writes


class Guest:
    def __init__(self, lines: BufferedRWPair[Any, Any], folder: Path) -> None:
        self._lines = lines
        self._folder = folder
        lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        message = {"execute": command, "arguments": arguments}
        self._lines.write(json.dumps(message).encode() + b"\n")
        self._lines.flush()
        while "event" in (reply := json.loads(self._lines.readline())):
            pass
        return reply["return"]

    def look(self) -> Writes:
        file, begun = self._folder / "memory", time.monotonic()
        self.execute("pmemsave", filename=str(file), **LOOK)
        at = (begun + time.monotonic()) / 2
        return Writes.of(file.read_bytes(), at)

    def snapshot(self, number: int) -> tuple[float, float]:
        actions = []
        for disk in (0, 1):
            below = f"n{disk}-{number}"
            above, file = f"n{disk}-{number + 1}", f"{self._folder}/{disk}-{number + 1}.qcow2"
            base = f"{self._folder}/{disk}-{number}.qcow2"
            words = ["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", base, file, "16M"]
            subprocess.run(["qemu-img", *words], check=True)
            self.execute("blockdev-add", driver="file", filename=file, **{"node-name": f"f{above}"})
            upper = {"node-name": above, "file": f"f{above}", "backing": None}
            self.execute("blockdev-add", driver="qcow2", **upper)
            data = {"node": below, "overlay": above}
            actions.append({"type": "blockdev-snapshot", "data": data})
        begun = time.monotonic()
        self.execute("transaction", actions=actions)
        return begun, time.monotonic()


def argv(fd: int, folder: Path) -> list[str]:
    words = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-m", "16", "-nodefaults"]
    words += ["-display", "none", "-chardev", f"socket,id=qmp,fd={fd}"]
    words += ["-mon", "chardev=qmp,mode=control"]
    for disk in (0, 1):
        file = {"driver": "file", "filename": f"{folder}/{disk}-0.qcow2"}
        node = {"driver": "qcow2", "node-name": f"n{disk}-0", "file": file}
        words += ["-blockdev", json.dumps(node)]
        words += ["-device", f"virtio-blk-pci,drive=n{disk}-0,bootindex={disk}"]
    return words


def measure(guest: Guest, load: dict[str, float]) -> dict[str, float]:
    pauses, longest, took = [], [], []
    while guest.look().count < load["writes"]:
        time.sleep(0.02)
    first = guest.look()
    time.sleep(load["quiet"])
    watch = Watch(first, guest.look())
    for number in range(int(load["snapshots"])):
        begun = time.monotonic()
        switch = guest.snapshot(number)
        took.append(time.monotonic() - begun)
        while not watch.shows(seen := guest.look(), begun + took[-1]):
            time.sleep(load["after"])
        pauses.append(watch.gap(seen, *switch))
        longest.append(watch.gap(seen, begun, begun + took[-1]))
    return {
        "snapshot_pause": statistics.median(pauses),
        "longest": statistics.median(longest),
        "quiet": watch.quiet,
        "take": statistics.median(took),
    }


def main() -> None:
    load = json.loads(sys.argv[1])
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for disk, image in enumerate(load["images"]):
            shutil.copy(image, folder / f"{disk}-0.qcow2")
        qemu = subprocess.Popen(argv(theirs.fileno(), folder), pass_fds=[theirs.fileno()])
        try:
            theirs.close()
            with ours.makefile("rwb") as lines:
                print(json.dumps(measure(Guest(lines, folder), load)))
        finally:
            qemu.kill()
            qemu.wait()


main()
