"""Our side of `farm.start_many`: a supervisor that keeps machines, all asked for at once."""

from __future__ import annotations

import json
import sys
import time

import trio
from farm_spec import spec

from qmpkit import Supervisor


async def measure(machines: int) -> dict[str, float]:
    async with Supervisor("many", keep=True) as lab:
        try:
            started = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for number in range(machines):
                    nursery.start_soon(lambda it: lab.ensure(it, paused=True), spec(number))
            took = time.perf_counter() - started
        finally:
            with trio.CancelScope(shield=True):
                await lab.stop_kept(powerdown_grace=0.0)
                for name in lab.kept:
                    await lab.forget(name)
    return {"start_many": took / machines}


print(json.dumps(trio.run(measure, json.loads(sys.argv[1])["machines"])))
