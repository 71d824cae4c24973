"""`qemu-img convert` of the same image into a new file; with "sync", until it is safe on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time


def safe(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def main() -> None:
    load = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory(dir=load["folder"]) as folder:
        target = f"{folder}/copy.qcow2"
        words = ["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", load["image"], target]
        os.sync()
        started = time.perf_counter()
        subprocess.run(words, check=True)
        if sys.argv[2] == "sync":
            safe(target)
            safe(folder)
        print(json.dumps({"full_backup": time.perf_counter() - started}))


main()
