"""Running the sides of a comparison by turns, and what is made of their figures."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["FEWEST_RUNS", "HERE", "Result", "compare", "interleave", "say", "script", "versions"]

HERE = Path(__file__).parent
FEWEST_RUNS = 25
PATIENCE = 120.0  # seconds one run of one side may take

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """One metric against one peer: a cost, smaller is better.

    `ours` and `theirs` are medians and `ratio` is their quotient; `low` and `high` are
    the smallest and largest quotient of two runs that stood side by side.
    """

    metric: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    unit: str
    runs: int

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    def as_text(self) -> str:
        return (
            f"{self.metric:<20} ours {self.ours:.3e} {self.unit}  {self.peer:<10} "
            f"{self.theirs:.3e} {self.unit}  ratio {self.ratio:.2f} "
            f"({self.low:.2f} to {self.high:.2f}, {self.runs} runs)"
        )


def say(text: str) -> None:
    """To stderr: the record of the run, apart from its result."""
    print(text, file=sys.stderr, flush=True)


def versions() -> str:
    """What ran: everything that moves a figure."""
    packages = []
    for name in ("qmpkit", "trio", "qemu.qmp", "xxhash"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"{name} missing")
    qemu = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    cpus = len(Path("/proc/cpuinfo").read_text().split("processor\t:")) - 1
    machine = f"Linux {platform.release()}, {cpus} CPUs"
    return f"Python {platform.python_version()}; {', '.join(packages)}; {qemu}; {machine}"


def script(path: str, *arguments: str) -> list[str]:
    """The command of a side that is a Python script below this folder."""
    return [sys.executable, str(HERE / path), *arguments]


def interleave(
    sides: Mapping[str, Sequence[str]], runs: int, *, patience: float = PATIENCE
) -> dict[str, list[Figures]]:
    """Run every side's command by turns, *runs* times each, and keep what each printed.

    A command prints one JSON object of figures, within *patience* seconds.  Each round
    begins with another side, so that no side always runs behind the same neighbour.  One
    round before the first fills the caches and is not counted.
    """
    names = list(sides)
    figures: dict[str, list[Figures]] = {name: [] for name in names}
    for turn in range(-1, runs):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            found = _run(sides[name], patience)
            if turn >= 0:
                figures[name].append(found)
                say(f"run {turn + 1:>3} {name:<10} {json.dumps(found)}")
    return figures


def _run(command: Sequence[str], patience: float) -> Figures:
    # Compiled modules are kept, as on a user's machine, whatever this shell says.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPATH"] = str(HERE)  # for what two sides share
    # Its own group, so that what it started can be ended with it.
    side = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0, env=env)
    try:
        printed, _ = side.communicate(timeout=patience)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(side.pid, signal.SIGKILL)
        side.wait()
    if side.returncode:
        raise SystemExit(f"a side failed with status {side.returncode}: {shlex.join(command)}")
    found: Figures = json.loads(printed)
    return found


def compare(
    metric: str, figure: str, figures: Mapping[str, list[Figures]], ours: str, unit: str = "s"
) -> Iterable[Result]:
    """One result for each peer that gave this *figure*."""
    mine = [run[figure] for run in figures[ours]]
    for peer, runs in figures.items():
        if peer == ours or figure not in runs[0]:
            continue
        theirs = [run[figure] for run in runs]
        pairs = [a / b for a, b in zip(mine, theirs, strict=True)]
        ratio = statistics.median(mine) / statistics.median(theirs)
        yield Result(
            metric=metric,
            peer=peer,
            ours=statistics.median(mine),
            theirs=statistics.median(theirs),
            ratio=ratio,
            low=min(pairs),
            high=max(pairs),
            unit=unit,
            runs=len(mine),
        )
