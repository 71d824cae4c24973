"""Hotplug: how soon a guest sees a plugged disk, and a hundred plugs and unplugs, in seconds.

`hotplug.disk_seen` is from the call of `vm.disks.add` with a raw image that is there until
the guest's kernel says on its console that it has the disk; `hotplug.disk_gone` is the call
of `vm.disks.remove`, whose guest is then asked whether it has let go.  Each run prints how
long the call of `add` took by itself (`called`), which nobody else has.

`hotplug.disk` and `hotplug.nic` are the same of a disk and a NIC that are plugged and
unplugged by turns, --size times, in one machine: what the two calls took together.  Printed
with each run is whether that grows, as the last ten against the first ten.

The guest is *tiny* under TCG, its drivers loaded before.  The peer `script` sends the same
QEMU's QMP commands by hand, waits for their replies and for the guest's answer, and looks at
nothing else.  Each run boots a guest of its own on either side.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any

from bench_sides import Result, compare, interleave, say, script

PLUGS = 5  # of one disk in one run; their median is the run's figure
MANY_RUNS = 3  # of a hundred plugs, each of which is a figure
PATIENCE = 600.0  # seconds that a hundred plugs may take
IMAGE = 1 << 20  # bytes

RATIO = 1.25  # that a guest may wait for its disk, of the time with the peer
GROWN = 1.25  # that the last ten plugs may take of the first ten


def measure(runs: int, size: int = 100) -> list[Result]:
    printed = subprocess.run(
        script("ours/hotplug_argv.py"), stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    with tempfile.NamedTemporaryFile(suffix=".raw") as image:
        image.truncate(IMAGE)
        load = {**json.loads(printed), "image": image.name}
        return [*few(load, runs), *many(load, size)]


def sides(load: Mapping[str, Any]) -> dict[str, list[str]]:
    words = json.dumps(load)
    say(f"load: {words}")
    return {
        "qmpkit": script("ours/hotplug_plugs.py", words),
        "script": script("peers/hotplug_script.py", words),
    }


def few(load: Mapping[str, Any], runs: int) -> list[Result]:
    figures = interleave(sides({**load, "plugs": PLUGS, "many": False}), runs)
    results = [
        result
        for figure in ("disk_seen", "disk_gone")
        for result in compare(f"hotplug.{figure}", figure, figures, ours="qmpkit")
    ]
    say(f"hotplug.disk_seen: {results[0].ratio:.2f} of the script, limit {RATIO}")
    return results


def many(load: Mapping[str, Any], size: int) -> list[Result]:
    words = {**load, "plugs": size, "many": True}
    figures = interleave(sides(words), MANY_RUNS, patience=PATIENCE)
    results: list[Result] = []
    for kind in ("disk", "nic"):
        results += compare(f"hotplug.{kind}", kind, figures, ours="qmpkit")
        grown = [f"{run[f'{kind}_slowing']:.2f}" for run in figures["qmpkit"]]
        said = f"{size} plugs and unplugs in a row, {results[-1].ratio:.2f} of the script"
        say(f"hotplug.{kind}: {said}; the last ten took {', '.join(grown)} of the first ten")
        say(f"hotplug.{kind}: they may take {GROWN}")
    return results
