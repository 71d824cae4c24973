"""Our side of the clone metrics: `Template.clone`, `Template.clones`, `Pool.take`."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import trio

from qmpkit import VM, Pool, Supervisor, Template, open_template


async def answered(vm: VM) -> None:
    await vm.console.send_line("echo $((6 * 7))-it-is")
    await vm.console.expect("42-it-is")


async def clone_once(template: Template, twin: bool) -> tuple[float, float, int]:
    begun = time.perf_counter()
    async with template.clone(twin=twin) as vm:
        running = time.perf_counter() - begun
        await answered(vm)
        return running, time.perf_counter() - begun, pss(vm.pid)


def pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


async def take_once(pool: Pool) -> float:
    await pool.wait_warm()
    begun = time.perf_counter()
    async with pool.take() as vm:
        await answered(vm)
        return time.perf_counter() - begun


async def many(template: Template, count: int) -> float:
    begun = time.perf_counter()
    async with template.clones(count, twin=True):
        return time.perf_counter() - begun


async def measure(load: dict[str, Any]) -> dict[str, float]:
    template = await open_template(load["template"])
    found: dict[str, float] = {}
    async with Supervisor():  # which holds the spawner
        twins = [await clone_once(template, True) for _ in range(load["clones"] + 1)][1:]
        found["running"] = statistics.median(running for running, _, _ in twins)
        found["first_answer"] = statistics.median(answer for _, answer, _ in twins)
        found["pss"] = statistics.median(pss for _, _, pss in twins)
        if load["many"]:
            found["many"] = await many(template, load["many"])
        if load["pools"]:
            bodies = [await clone_once(template, False) for _ in range(load["clones"])]
            found["somebody"] = statistics.median(running for running, _, _ in bodies)
            for figure, loaded in (("take", False), ("take_loaded", True)):
                async with Pool(template, warm=1, loaded=loaded, twin=True) as pool:
                    taken = [await take_once(pool) for _ in range(load["clones"])]
                found[figure] = statistics.median(taken)
    return found


print(json.dumps(trio.run(measure, json.loads(sys.argv[1]))))
