"""Our side of the start metrics: `running()`, its guest's vCPUs running at the block's begin.

`first` is the first machine of a program; `running` are those after it, while a
supervisor holds the spawner.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import trio
from start_spec import SPEC

from qmpkit import Supervisor, running


async def start_once() -> float:
    started = time.perf_counter()
    async with running(SPEC):
        return time.perf_counter() - started


async def measure(starts: int) -> dict[str, float]:
    first = await start_once()
    async with Supervisor():
        later = [await start_once() for _ in range(starts)]
    return {"first": first, "running": statistics.median(later)}


print(json.dumps(trio.run(measure, json.loads(sys.argv[1])["starts"])))
