"""Clones of a template, in seconds, against raw scripts on the same command line.

`clone.running`: from the call to a guest that runs, its overlay included, by `Template.clone`
of a twin; `first_answer`: to what its shell answers.  Peers: `script` does the same with the
fewest commands, `greeting` only starts that QEMU and reads its greeting, `cold_boot` boots.
`clone.somebody` is from the call to a clone with identity, clock and entropy of its own,
which no peer makes.  `clone.twenty`: as many at once.  `pool.take`: from `take` to the first
answer, of processes that wait for the state; `pool.take_loaded`: of those that have it.
`clone.large`: `clone.running` of 4 GiB against 256 MiB.  `clone.pss`: bytes, of a guest that
has touched 1.5 GiB.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench_sides import Figures, Result, compare, interleave, say, script

CLONES = 3  # of each kind, one after another, in one run; their median is the run's figure
LIMITS = {
    ("clone.running", "greeting"): 3.0,
    ("clone.running", "script"): 1.10,
    ("clone.first_answer", "cold_boot"): 1 / 20,
    ("clone.large", "256MiB"): 1.3,
    ("clone.twenty", "script"): 1.10,
    ("pool.take", "script"): 1.10,
    ("pool.take_loaded", "script"): 1.10,
}
PSS = 85 << 20


def measure(runs: int, size: int = 20) -> list[Result]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = made(folder / "small", "256MiB", many=size)
        large = made(folder / "large", "4GiB")
        touched = made(folder / "touched", "2GiB", touched=3 << 29)
        figures = interleave(
            {
                "qmpkit": ours(small),
                "script": script("peers/clone_script.py", json.dumps(small), "clones"),
                "greeting": script("peers/clone_script.py", json.dumps(small), "greeting"),
                "cold_boot": script("peers/clone_script.py", json.dumps(small), "cold_boot"),
                "large": ours(large),
                "touched": ours(touched),
            },
            runs,
        )
    results = list(judged(figures))
    for result in results:
        limit = LIMITS.get((result.metric, result.peer))
        if limit is not None:
            say(f"{result.metric}: {result.ratio:.3f} of {result.peer}, limit {limit:.3g}")
    return results


def judged(figures: dict[str, list[Figures]]) -> list[Result]:
    sides = {name: figures[name] for name in ("qmpkit", "script", "greeting", "cold_boot")}
    named = {"running": "clone.running", "first_answer": "clone.first_answer"}
    named |= {"many": "clone.twenty", "take": "pool.take", "take_loaded": "pool.take_loaded"}
    results = [
        result
        for figure, metric in named.items()
        for result in compare(metric, figure, sides, ours="qmpkit")
    ]
    sizes = {"large": figures["large"], "256MiB": figures["qmpkit"]}
    results += compare("clone.large", "running", sizes, ours="large")
    pss = statistics.median(run["pss"] for run in figures["touched"])
    say(f"clone.pss: {pss / (1 << 20):.1f} MiB with 1.5 GiB touched, limit {PSS >> 20}")
    bodies = statistics.median(run["somebody"] for run in figures["qmpkit"])
    say(f"clone.somebody: {bodies:.3f} s")
    return results


def ours(load: dict[str, Any]) -> list[str]:
    return script("ours/clone_clones.py", json.dumps(load))


def made(folder: Path, memory: str, *, many: int = 0, touched: int = 0) -> dict[str, Any]:
    folder.mkdir()
    command = script("ours/clone_template.py", str(folder), memory, str(touched))
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    load: dict[str, Any] = {**json.loads(printed), "clones": CLONES, "many": many, "rest": 0.05}
    say(f"load: {memory}, {touched} bytes touched, in {load['template']}")
    return load
