"""Start-up of the command and of the library, whole processes, against Python's own start."""

from __future__ import annotations

import json
import sys

from bench_sides import Result, compare, interleave, script

COMMANDS = {
    "help": ["-m", "qmpkit.cli", "--help"],
    "import": ["-c", "import qmpkit"],
    "python": ["-c", "pass"],
}
METRICS = {"help": "cli.help", "import": "import"}


def measure(runs: int) -> list[Result]:
    sides = {
        name: script("peers/whole_process.py", json.dumps([sys.executable, *words]))
        for name, words in COMMANDS.items()
    }
    figures = interleave(sides, runs)
    return [
        result
        for side, metric in METRICS.items()
        for result in compare(
            metric, "wall", {name: figures[name] for name in (side, "python")}, ours=side
        )
    ]
