"""The floor of the image operations: qemu-img itself, as a script would run it."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

CREATE = "create -q -f qcow2"
CALLS = {
    "create": f"{CREATE} new 64M",
    "overlay": f"{CREATE} -F qcow2 -b base.qcow2 new",
    "info": "info --output=json -f qcow2 top.qcow2",
    "check": "check --output=json -f qcow2 top.qcow2",
    "map": "map --output=json -f qcow2 top.qcow2",
    "measure": "measure --output=json -f qcow2 -O raw top.qcow2",
    "compare": "compare -f qcow2 -F qcow2 top.qcow2 base.qcow2",
    "resize": "resize -q -f qcow2 base.qcow2 128M",
    "rebase": "rebase -f qcow2 -F qcow2 -b other.qcow2 top.qcow2",
    "commit": "commit -q -f qcow2 top.qcow2",
    "add_bitmap": "bitmap --add -f qcow2 base.qcow2 b",
    "snapshot": "snapshot -q -c s base.qcow2",
    "convert": "convert -f qcow2 -O qcow2 top.qcow2 flat",
}
DIFFERENT = 1  # what `compare` ends with when the two show another content


def safe(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def timed(name: str, load: dict[str, str]) -> float:
    with tempfile.TemporaryDirectory(dir=load["folder"]) as folder:
        at = f"{folder}/images"
        shutil.copytree(load["images"], at)
        started = time.perf_counter()
        words = ["qemu-img", *CALLS[name].split()]
        done = subprocess.run(words, cwd=at, stdout=subprocess.PIPE, check=False)
        if name == "convert":
            safe(f"{at}/flat")
            safe(at)
        took = time.perf_counter() - started
    if done.returncode not in (0, DIFFERENT if name == "compare" else 0):
        raise SystemExit(f"qemu-img {CALLS[name]} failed")
    return took


def main() -> None:
    load = json.loads(sys.argv[1])
    took = {name: [timed(name, load) for _ in range(load["calls"])] for name in CALLS}
    print(json.dumps({name: statistics.median(times) for name, times in took.items()}))


main()
