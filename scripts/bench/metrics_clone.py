"""Clones of a template, in seconds, against raw scripts on the same command line.

`clone.running`: from the call to a guest that runs, its overlay included, by `Template.clone`
of a twin; `first_answer`: to what its shell answers.  Peers: `script` does the same with the
fewest commands, `greeting` only starts that QEMU and reads its greeting, `cold_boot` boots.
`clone.somebody` is from the call to a clone with identity, clock and entropy of its own,
which no peer makes.  `clone.twenty`: as many at once.  `pool.take`: from `take` to the first
answer, of processes that wait for the state; `pool.take_loaded`: of those that have it.
`clone.large`: `clone.running` of 4 GiB against 256 MiB.  `clone.pss`: bytes, of a guest that
has touched 1.5 GiB.

All of that is on microvm, the board for fast clones.  Most is measured once more on q35, the
default, as `…_q35`; the rest would only take longer.  QEMU greets before it has made its
board, which is much of a clone's time on q35, so the script's own ratio to that is said too:
its QEMU waits for 12 ms when its table of descriptors has to grow, ours has a large one.
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
BOARDS = {"microvm": "tiny-microvm", "q35": "tiny"}  # the profile of each
FAST = "microvm"
PEERS = ("script", "greeting", "cold_boot")
NAMED = {
    "running": "clone.running",
    "first_answer": "clone.first_answer",
    "many": "clone.twenty",
    "take": "pool.take",
    "take_loaded": "pool.take_loaded",
}
LIMITS = {
    ("clone.running", "script"): 1.10,
    ("clone.first_answer", "cold_boot"): 1 / 20,
    ("clone.large", "256MiB"): 1.3,
    ("clone.twenty", "script"): 1.10,
    ("pool.take", "script"): 1.10,
    ("pool.take_loaded", "script"): 1.10,
}
GREETING = 3.0
PSS = 85 << 20


def measure(runs: int, size: int = 20) -> list[Result]:
    sides: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        for board in BOARDS:
            sides |= sides_on(board, Path(name), size)
        figures = interleave(sides, runs)
    return [result for board in BOARDS for result in judged(board, figures)]


def sides_on(board: str, folder: Path, many: int) -> dict[str, list[str]]:
    small = made(folder, board, "256MiB", many=many if board == FAST else 0, pools=True)
    sides = {"qmpkit": clones_of(small)}
    sides |= {it: script("peers/clone_script.py", json.dumps(small), it) for it in PEERS}
    if board == FAST:
        sides["large"] = clones_of(made(folder, board, "4GiB"))
        sides["touched"] = clones_of(made(folder, board, "2GiB", touched=3 << 29))
    return {f"{board} {side}": command for side, command in sides.items()}


def judged(board: str, figures: dict[str, list[Figures]]) -> list[Result]:
    sides = {side: figures[f"{board} {side}"] for side in ("qmpkit", *PEERS)}
    ours = sides["qmpkit"]
    results = [
        result
        for figure, metric in NAMED.items()
        if figure in ours[0]
        for result in compare(on(board, metric), figure, sides, ours="qmpkit")
    ]
    if board == FAST:
        sizes = {"large": figures[f"{board} large"], "256MiB": ours}
        results += compare("clone.large", "running", sizes, ours="large")
        pss = middle(figures[f"{board} touched"], "pss") / (1 << 20)
        say(f"clone.pss: {pss:.1f} MiB with 1.5 GiB touched, limit {PSS >> 20}")
    for result in results:
        limit = LIMITS.get((result.metric.removesuffix("_q35"), result.peer))
        if limit is not None:
            say(f"{result.metric}: {result.ratio:.3f} of {result.peer}, limit {limit:.3g}")
    own, bare = middle(sides["script"], "running"), middle(sides["greeting"], "running")
    told = f"{middle(ours, 'running') / bare:.3f} of greeting, limit {GREETING:.3g}"
    say(f"{on(board, 'clone.running')}: {told}; the script itself {own / bare:.3f}")
    say(f"{on(board, 'clone.somebody')}: {middle(ours, 'somebody'):.3f} s")
    return results


def on(board: str, metric: str) -> str:
    return metric if board == FAST else f"{metric}_{board}"


def middle(runs: list[Figures], figure: str) -> float:
    return statistics.median(run[figure] for run in runs)


def clones_of(load: dict[str, Any]) -> list[str]:
    return script("ours/clone_clones.py", json.dumps(load))


def made(
    place: Path, board: str, memory: str, *, many: int = 0, pools: bool = False, touched: int = 0
) -> dict[str, Any]:
    folder = place / f"{board}-{memory}"
    folder.mkdir()
    command = script("ours/clone_template.py", str(folder), BOARDS[board], memory, str(touched))
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    load: dict[str, Any] = {**json.loads(printed), "clones": CLONES, "rest": 0.05}
    load |= {"many": many, "pools": pools}
    say(f"load: {board}, {memory}, {touched} bytes touched, in {load['template']}")
    return load
