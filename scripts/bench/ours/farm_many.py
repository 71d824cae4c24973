"""Our side of `farm.start_many`: a supervisor that keeps machines, all asked for at once.

The process is set up as our daemon is.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import trio
from farm_memory import memory_at_hand
from farm_spec import spec

from qmpkit import Supervisor
from qmpkit.cli.serve import own_process


async def measure(load: dict[str, Any]) -> dict[str, float]:
    async with Supervisor("many", keep=True) as lab:
        try:
            started = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for number in range(load["machines"]):
                    wanted = spec(number, load["accel"])
                    nursery.start_soon(lambda it: lab.ensure(it, paused=True), wanted)
            took = time.perf_counter() - started
        finally:
            with trio.CancelScope(shield=True):
                await lab.stop_kept(powerdown_grace=0.0)
    return {"start_many": took / load["machines"]}


os.environ["QMPKIT_STATE_DIR"] += f"/{os.getpid()}"  # left until the end: see farm_memory
own_process()
load = json.loads(sys.argv[1])
with memory_at_hand(load["machines"]):
    figures = trio.run(measure, load)
print(json.dumps(figures))
