"""Images: `info`, `create` and `overlay` against qemu-img run by itself, in seconds.

Our side is measured inside one running program that holds the spawner, as a program
with machines does; the peer starts qemu-img with Popen and waits.  Each figure is the
median of some calls of a fresh program.  `first` is the first `info` of a program, which
starts a spawner for itself and loads what it needs: once a program, and under no limit.
"""

from __future__ import annotations

import json
import subprocess

from bench_sides import Result, compare, interleave, say, script

CALLS = 15  # of each kind in one run; their median is the run's figure
LIMIT = 0.015  # seconds that ours may take above the peer


def measure(runs: int) -> list[Result]:
    load = json.dumps({"calls": CALLS})
    say(f"load: {load}")
    told = subprocess.run(["qemu-img", "--version"], capture_output=True, text=True, check=True)
    say(told.stdout.splitlines()[0])
    figures = interleave(
        {
            "qmpkit": script("ours/images_calls.py", load),
            "qemu-img": script("peers/images_calls.py", load),
        },
        runs,
    )
    results = [
        result
        for figure in ("info", "create", "overlay", "first")
        for result in compare(f"images.{figure}", figure, figures, ours="qmpkit")
    ]
    for result in results[:-1]:
        added = result.ours - result.theirs
        say(f"{result.metric}: peer + {added * 1e3:.1f} ms, limit {LIMIT * 1e3:.0f} ms")
    return results
