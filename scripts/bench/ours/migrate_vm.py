"""Our side of the group `migrate`: `vm.migrate`, again and again."""

from __future__ import annotations

import json
import statistics
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import trio
from migrate_spec import spec_of

from qmpkit import VM, receiving, running


async def measure(load: dict[str, Any]) -> dict[str, float]:
    total, downtime = [], []
    async with AsyncExitStack() as stack:
        vm: VM = await stack.enter_async_context(running(spec_of(load)))
        await vm.console.expect(".")
        for _ in range(load["moves"]):
            destination = await stack.enter_async_context(receiving(vm))
            started = time.perf_counter()
            took = await vm.migrate(destination)
            total.append(time.perf_counter() - started)
            downtime.append(took.downtime)
            vm = destination.vm
            await vm.console.expect(".")
    return {"total": statistics.median(total), "downtime": statistics.median(downtime)}


def main() -> None:
    print(json.dumps(trio.run(measure, json.loads(sys.argv[1]))))


main()
