"""Our side of the image metrics."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from qmpkit import Supervisor, images


async def timed(call: Callable[[int], Awaitable[object]], number: int) -> float:
    started = time.perf_counter()
    await call(number)
    return time.perf_counter() - started


async def measure(folder: Path, base: Path, calls: int) -> dict[str, float]:
    async def info(number: int) -> None:
        await images.info(base, format="qcow2")

    async def create(number: int) -> None:
        await images.create(folder / f"new{number}", "10GiB", "qcow2")

    async def overlay(number: int) -> None:
        await images.overlay(folder / f"top{number}", base, "qcow2")

    figures = {"first": await timed(info, 0)}
    async with Supervisor():
        for call in (info, create, overlay):
            took = [await timed(call, number) for number in range(1, calls + 1)]
            figures[call.__name__] = statistics.median(took)
    return figures


def main() -> None:
    calls = json.loads(sys.argv[1])["calls"]
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "10G"], check=True)
        print(json.dumps(trio.run(measure, Path(name), base, calls)))


main()
