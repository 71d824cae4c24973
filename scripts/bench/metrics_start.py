"""Start: from a spec to a machine whose vCPUs run, in seconds.

Each run is a fresh program on each side; both start QEMU with our command line.
"""

from __future__ import annotations

import json
import subprocess

from bench_sides import Result, compare, interleave, say, script

STARTS = 5  # machines after the first, one after the other; their median is one run's figure


def measure(runs: int) -> list[Result]:
    printed = subprocess.run(
        script("ours/start_argv.py"), stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    load = json.dumps({**json.loads(printed), "starts": STARTS})
    say(f"load: {load}")
    figures = interleave(
        {
            "qmpkit": script("ours/start_running.py", load),
            "bare": script("peers/start_bare.py", load),
        },
        runs,
    )
    return [
        result
        for figure in ("running", "first")
        for result in compare(f"start.{figure}", figure, figures, ours="qmpkit")
    ]
