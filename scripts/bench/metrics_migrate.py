"""Migration: a guest's move from one QEMU to another on this host, in seconds.

`migrate.total` is `vm.migrate` from its call until the source has ended, `migrate.downtime`
the time from the source's STOP to the destination's RESUME, by when a program reads them.
The guest counts in its memory and has two disks, which both QEMUs have open.  Its peer is a
script of the same QEMUs and QMP commands with the same capabilities and parameters, over the
same kind of way (a pair of sockets), which asks for nothing and checks nothing.  --size is the
MiB of the guest's RAM; QEMU looks at all of it, and sends what is not zero.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from bench_sides import Result, compare, interleave, say, script

from qmpkit.testing import guests

MOVES = 9  # in one run, each of a fresh destination; their median is the run's figure
RATIO = 1.05  # that either may take of the time of the peer
METRICS = ("total", "downtime")


def measure(runs: int, size: int = 256) -> list[Result]:
    firmware = guests.build_kvm_tiny() / "firmware.bin"
    with tempfile.TemporaryDirectory() as name:
        images = [str(Path(name) / f"{disk}.qcow2") for disk in (0, 1)]
        for image in images:
            words = ["qemu-img", "create", "-q", "-f", "qcow2", image, "16M"]
            subprocess.run(words, check=True)
        # 7.2 under TCG corrupts RAM whose size is a multiple of 256 KiB.
        memory = (size << 10) + 16
        machine = {"firmware": str(firmware), "images": images, "memory": memory}
        command = script("ours/migrate_argv.py", json.dumps(machine))
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        load = json.dumps({**machine, **json.loads(printed), "moves": MOVES})
        say(f"load: {load}")
        sides = {
            "qmpkit": script("ours/migrate_vm.py", load),
            "script": script("peers/migrate_script.py", load),
        }
        figures = interleave(sides, runs)
    results = []
    for metric in METRICS:
        (result,) = compare(f"migrate.{metric}", metric, figures, ours="qmpkit")
        say(f"{result.metric}: {result.ratio:.3f} of the script, limit {RATIO}")
        results.append(result)
    return results
