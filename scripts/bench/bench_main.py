"""The command line of the benchmarks; `scripts/bench/run` starts it.

A group of metrics is a module `metrics_NAME` beside this one with a function
`measure(runs) -> list[Result]`; with a second parameter `size` when how many things it
measures can be chosen.  Peers stand in `peers/` and never import qmpkit.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import shlex
import sys
from pathlib import Path

from bench_sides import FEWEST_RUNS, Result, say, versions

HERE = Path(__file__).parent


def groups() -> list[str]:
    return sorted(path.stem.removeprefix("metrics_") for path in HERE.glob("metrics_*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench/run", description=__doc__)
    parser.add_argument("name", choices=groups(), help="the group of metrics")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--runs", type=int, default=FEWEST_RUNS, help="at least 25")
    parser.add_argument("--size", type=int, help="of a group that has one (farm: machines)")
    options = parser.parse_args()
    if options.runs < FEWEST_RUNS:
        parser.error(f"fewer than {FEWEST_RUNS} runs say nothing")
    measure = importlib.import_module(f"metrics_{options.name}").measure
    sizes = {} if options.size is None else {"size": options.size}
    if not sizes.keys() <= inspect.signature(measure).parameters.keys():
        parser.error(f"{options.name} has no size")
    say(f"command: {shlex.join(['scripts/bench/run', *sys.argv[1:]])}")
    say(f"versions: {versions()}")
    results: list[Result] = measure(options.runs, **sizes)
    for result in results:
        print(result.as_json() if options.json else result.as_text())


if __name__ == "__main__":
    main()
